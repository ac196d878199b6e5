//! ZeroMQ certificate files: the format that CZMQ's zcert and pyzmq's `zmq.auth` read and write.
//!
//! A file is ZPL: a section name at the margin, `name = value` lines indented below it, `#` begins a comment. The public
//! file `x.key` has the sections `metadata` and `curve` with the public key in Z85; the secret file `x.key_secret` has
//! the secret key too. Our metadata: `role` says what the holder may do, `node` which node it is, `name` is for people.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use wire::{ClientKey, NodeId, Role};

const SIZE_MAX: u64 = 64 * 1024;

/// A CURVE key with what is known about its holder; with the secret half when it is our own.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    pub public: ClientKey,
    pub secret: Option<[u8; 32]>,
    pub metadata: BTreeMap<String, String>,
}

/// Says why a certificate file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("certificate {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("certificate {}: {what}", path.display())]
    Malformed { path: PathBuf, what: String },
    #[error("certificate {} holds a secret key and has mode {mode:04o}: run chmod 600 on it", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("certificate {} would have no secret key", path.display())]
    NoSecret { path: PathBuf },
}

impl Certificate {
    /// Makes a fresh key pair without metadata. Panics if libzmq has no CURVE, which `Endpoint::open` tells politely.
    #[expect(clippy::new_without_default, reason = "a default that is never the same twice would mislead")]
    pub fn new() -> Certificate {
        let pair = zmq::CurveKeyPair::new().expect("libzmq has CURVE");
        Certificate { public: ClientKey(pair.public_key), secret: Some(pair.secret_key), metadata: BTreeMap::new() }
    }

    /// Adds a line of metadata.
    pub fn with(mut self, name: &str, value: impl fmt::Display) -> Certificate {
        self.metadata.insert(name.into(), value.to_string());
        self
    }

    /// The same certificate without its secret half.
    pub fn to_public(&self) -> Certificate {
        Certificate { public: self.public, secret: None, metadata: self.metadata.clone() }
    }

    /// What the holder may do; `None` = only what the seed defines.
    pub fn role(&self) -> Option<Role> {
        self.metadata.get("role").and_then(|word| Role::from_word(word))
    }

    /// The node that the key is bound to.
    pub fn node(&self) -> Option<NodeId> {
        self.metadata.get("node").and_then(|text| text.parse().ok())
    }

    pub fn name(&self) -> Option<&str> {
        self.metadata.get("name").map(String::as_str)
    }

    /// Reads a public or secret file. A secret one that others can read is refused.
    pub fn load(path: impl AsRef<Path>) -> Result<Certificate, CertificateError> {
        let path = path.as_ref();
        let failed = |source| CertificateError::Io { path: path.to_owned(), source };
        let attributes = fs::metadata(path).map_err(failed)?;
        if attributes.len() > SIZE_MAX {
            return Err(CertificateError::Malformed { path: path.to_owned(), what: format!("above {SIZE_MAX} bytes") });
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        let certificate =
            Certificate::parse(&text).map_err(|what| CertificateError::Malformed { path: path.to_owned(), what })?;
        let mode = attributes.permissions().mode() & 0o777;
        if certificate.secret.is_some() && mode & 0o077 != 0 {
            return Err(CertificateError::Exposed { path: path.to_owned(), mode });
        }
        Ok(certificate)
    }

    /// Writes the public file; an old one is replaced in one step.
    pub fn save_public(&self, path: impl AsRef<Path>) -> Result<(), CertificateError> {
        save(path.as_ref(), &self.to_public(), 0o644)
    }

    /// Writes the secret file, which only its owner can read.
    pub fn save_secret(&self, path: impl AsRef<Path>) -> Result<(), CertificateError> {
        if self.secret.is_none() {
            return Err(CertificateError::NoSecret { path: path.as_ref().to_owned() });
        }
        save(path.as_ref(), self, 0o600)
    }

    /// Reads the text of a file, or says what is wrong with it.
    pub fn parse(text: &str) -> Result<Certificate, String> {
        let mut section = "";
        let (mut public, mut secret, mut metadata) = (None, None, BTreeMap::new());
        for line in text.lines() {
            let content = line.trim();
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let Some((name, value)) = content.split_once('=') else {
                section = content;
                continue;
            };
            let (name, value) = (name.trim(), unquote(value.trim())?);
            match (section, name) {
                ("curve", "public-key") => public = Some(key(name, value)?),
                ("curve", "secret-key") => secret = Some(key(name, value)?),
                ("metadata", _) => {
                    metadata.insert(name.to_owned(), value.to_owned());
                }
                // Sections and keys of other programs are theirs.
                _ => {}
            }
        }
        let public = ClientKey(public.ok_or("no public-key in section curve")?);
        let certificate = Certificate { public, secret, metadata };
        // A role or node that is there but not understood must not read as "none given".
        if let Some(word) = certificate.metadata.get("role")
            && certificate.role().is_none()
        {
            return Err(format!("metadata role '{word}' is not a role"));
        }
        if let Some(text) = certificate.metadata.get("node")
            && certificate.node().is_none()
        {
            return Err(format!("metadata node '{text}' is not a uuid"));
        }
        Ok(certificate)
    }
}

impl fmt::Display for Certificate {
    /// The text of the file: with the secret key if it is there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let warning = if self.secret.is_some() {
            "#   ZeroMQ CURVE **Secret** Certificate\n#   DO NOT PROVIDE THIS FILE TO OTHER USERS nor change its permissions.\n"
        } else {
            "#   ZeroMQ CURVE Public Certificate\n#   Exchange securely, or use a secure mechanism to verify the contents\n#   of this file after exchange.\n"
        };
        write!(f, "{warning}\nmetadata\n")?;
        for (name, value) in &self.metadata {
            writeln!(f, "    {name} = \"{value}\"")?;
        }
        writeln!(f, "curve\n    public-key = \"{}\"", z85(&self.public.0))?;
        if let Some(secret) = &self.secret {
            writeln!(f, "    secret-key = \"{}\"", z85(secret))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = self.secret.map(|_| "…");
        f.debug_struct("Certificate")
            .field("public", &self.public)
            .field("secret", &secret)
            .field("metadata", &self.metadata)
            .finish()
    }
}

fn save(path: &Path, certificate: &Certificate, mode: u32) -> Result<(), CertificateError> {
    let is_line = |text: &str| !text.contains(['"', '\n', '\r', '=']);
    if let Some((name, value)) = certificate.metadata.iter().find(|(name, value)| !is_line(name) || !is_line(value)) {
        let what = format!("metadata {name:?} = {value:?} does not fit a line of the file");
        return Err(CertificateError::Malformed { path: path.to_owned(), what });
    }
    let write = || -> io::Result<()> {
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        // What a crash left may have another mode.
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(mode).open(&fresh)?;
        file.write_all(certificate.to_string().as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    write().map_err(|source| CertificateError::Io { path: path.to_owned(), source })
}

/// A ZPL value: quoted, or bare up to a comment.
fn unquote(value: &str) -> Result<&str, String> {
    for quote in ['"', '\''] {
        if let Some(rest) = value.strip_prefix(quote) {
            let (inside, _) = rest.split_once(quote).ok_or_else(|| format!("the quote of {value} is not closed"))?;
            return Ok(inside);
        }
    }
    // A `#` begins a comment only after a space, since Z85 has it as a digit.
    Ok(value.split(" #").next().unwrap_or("").trim_end())
}

fn key(name: &str, value: &str) -> Result<[u8; 32], String> {
    parse_z85(value).ok_or_else(|| format!("{name} '{value}' is not 40 characters of Z85"))
}

const Z85_DIGITS: &[u8; 85] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";

/// A key as text: ZeroMQ RFC 32. libzmq's own decoder takes characters that are not Z85, so both ways are here.
pub fn z85(key: &[u8; 32]) -> String {
    let mut text = String::with_capacity(40);
    for group in key.chunks_exact(4) {
        let value = u32::from_be_bytes([group[0], group[1], group[2], group[3]]);
        for power in [85u32.pow(4), 85u32.pow(3), 85u32.pow(2), 85, 1] {
            // Writing to a String cannot fail.
            let _ = text.write_char(char::from(Z85_DIGITS[(value / power % 85) as usize]));
        }
    }
    text
}

/// The key that 40 characters of Z85 stand for.
pub fn parse_z85(text: &str) -> Option<[u8; 32]> {
    if text.len() != 40 {
        return None;
    }
    let mut key = [0; 32];
    for (group, bytes) in text.as_bytes().chunks_exact(5).zip(key.chunks_exact_mut(4)) {
        let mut value = 0u64;
        for digit in group {
            let position = Z85_DIGITS.iter().position(|d| d == digit)?;
            value = value * 85 + position as u64;
        }
        bytes.copy_from_slice(&u32::try_from(value).ok()?.to_be_bytes());
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    // As `zmq.auth.create_certificates(dir, "worker", {"role": "worker", ...})` writes it: metadata without quotes.
    const PYZMQ_SECRET: &str = r#"#   ****  Generated on 2024-05-01 12:00:00.123456 by pyzmq  ****
#   ZeroMQ CURVE **Secret** Certificate
#   DO NOT PROVIDE THIS FILE TO OTHER USERS nor change its permissions.

metadata
    role = worker
    node = 00112233-4455-6677-8899-aabbccddeeff
curve
    public-key = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
    secret-key = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs"
"#;

    #[test]
    fn a_file_of_pyzmq_is_read() {
        let certificate = Certificate::parse(PYZMQ_SECRET).unwrap();
        // The key pair of libzmq's own CURVE test.
        assert_eq!(z85(&certificate.public.0), "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID");
        assert_eq!(z85(&certificate.secret.unwrap()), "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs");
        assert_eq!(certificate.role(), Some(Role::Worker));
        assert_eq!(certificate.node().unwrap().to_string(), "00112233-4455-6677-8899-aabbccddeeff");
        assert_eq!(certificate.name(), None);
    }

    #[test]
    fn our_file_has_the_lines_of_pyzmq_and_reads_back() {
        let certificate = Certificate::parse(PYZMQ_SECRET).unwrap();
        let text = certificate.to_string();
        let lines = |text: &str| -> Vec<String> {
            text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(str::to_owned).collect()
        };
        let quoted = PYZMQ_SECRET
            .replace("role = worker", "role = \"worker\"")
            .replace("00112233-4455-6677-8899-aabbccddeeff", "\"00112233-4455-6677-8899-aabbccddeeff\"");
        let mut expected = lines(&quoted);
        expected.swap(1, 2);
        assert_eq!(lines(&text), expected);
        assert_eq!(Certificate::parse(&text).unwrap(), certificate);
        assert!(!certificate.to_public().to_string().contains("secret-key"));
    }

    #[test]
    fn z85_is_that_of_libzmq() {
        for _ in 0..100 {
            let key = Certificate::new().public.0;
            assert_eq!(z85(&key), zmq::z85_encode(&key).unwrap());
            assert_eq!(parse_z85(&z85(&key)), Some(key));
        }
        assert_eq!(parse_z85(&"#".repeat(40)), None);
        assert_eq!(parse_z85(&"~".repeat(40)), None);
        assert_eq!(parse_z85("abc"), None);
    }

    #[test]
    fn files_round_trip_and_secrets_are_for_the_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let certificate =
            Certificate::new().with("role", Role::Storage).with("node", NodeId([5; 16])).with("name", "s1");
        let (public, secret) = (dir.path().join("s1.key"), dir.path().join("s1.key_secret"));
        certificate.save_public(&public).unwrap();
        certificate.save_secret(&secret).unwrap();
        certificate.save_secret(&secret).unwrap();
        assert_eq!(Certificate::load(&public).unwrap(), certificate.to_public());
        assert_eq!(Certificate::load(&secret).unwrap(), certificate);
        assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Certificate::load(&secret), Err(CertificateError::Exposed { mode: 0o640, .. })));
        assert!(matches!(certificate.to_public().save_secret(&secret), Err(CertificateError::NoSecret { .. })));
    }

    #[test]
    fn what_is_not_a_certificate_is_told() {
        let told = |text: &str| Certificate::parse(text).unwrap_err();
        assert!(told("").contains("public-key"));
        assert!(told("curve\n  public-key = \"short\"").contains("short"));
        let curve = "curve\n  public-key = \"Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID\"\n";
        assert!(told(&format!("metadata\n  role = wizard\n{curve}")).contains("wizard"));
        assert!(told(&format!("metadata\n  node = w3\n{curve}")).contains("w3"));
        assert!(told(&format!("metadata\n  role = \"worker\n{curve}")).contains("not closed"));
    }

    #[test]
    fn a_debug_print_keeps_the_secret() {
        let certificate = Certificate::new();
        let printed = format!("{certificate:?}");
        assert!(!printed.contains(&format!("{:?}", certificate.secret.unwrap())), "{printed}");
    }
}
