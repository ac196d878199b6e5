//! `#ZG` lines: the comment at the top of a script gives flags, as `#SBATCH` lines do.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use clap::Parser;

use super::failure::Failure;
use super::flags::Flags;

const MARK: &[u8] = b"#ZG ";

#[derive(Parser)]
#[command(name = "#ZG", no_binary_name = true, disable_help_flag = true)]
struct Line {
    #[command(flatten)]
    flags: Flags,
}

/// The flags in the leading comment of `program`, which was read from `path`. What is no script has none.
pub fn flags(path: &Path, program: &[u8]) -> Result<Flags, Failure> {
    let mut flags = Flags::default();
    if !program.starts_with(b"#!") {
        return Ok(flags);
    }
    let lines = program.split(|byte| *byte == b'\n').enumerate();
    for (number, line) in lines.take_while(|(_, line)| line.is_empty() || line.starts_with(b"#")) {
        let Some(text) = line.strip_prefix(MARK) else { continue };
        let place = format!("{}:{}", path.display(), number + 1);
        let words = words(text).ok_or_else(|| Failure::usage(format!("{place}: a quote is not closed")))?;
        let read = Line::try_parse_from(words).map_err(|error| {
            let message = error.to_string();
            Failure::usage(format!("{place}: {}", message.trim_start_matches("error: ").trim_end()))
        })?;
        flags = read.flags.over(flags);
    }
    Ok(flags)
}

/// Cuts a line into words as a shell does: spaces separate, quotes and backslashes protect. `None` = an open quote.
fn words(line: &[u8]) -> Option<Vec<OsString>> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut quote = None;
    let mut bytes = line.iter().copied();
    while let Some(byte) = bytes.next() {
        match (quote, byte) {
            (Some(open), _) if byte == open => quote = None,
            (Some(b'\''), _) => word.get_or_insert_default().push(byte),
            (_, b'\\') => word.get_or_insert_default().push(bytes.next()?),
            (None, b'\'' | b'"') => {
                quote = Some(byte);
                word.get_or_insert_default();
            }
            (None, b' ' | b'\t' | b'\r') => words.extend(word.take().map(OsString::from_vec)),
            (None | Some(_), _) => word.get_or_insert_default().push(byte),
        }
    }
    words.extend(word.map(OsString::from_vec));
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Flags, Failure> {
        flags(Path::new("job.sh"), text.as_bytes())
    }

    #[test]
    fn flags_stand_in_the_leading_comment_only() {
        let text =
            "#!/bin/sh\n# counts\n#ZG --cpus 2 -J 'two words'\n\n#ZG --env 'A=x y' --env B=\\ z\necho\n#ZG --cpus 9\n";
        let flags = read(text).unwrap_or_else(|error| panic!("{error:?}"));
        assert_eq!(flags.cpus, Some(2000));
        assert_eq!(flags.name, Some("two words".into()));
        assert_eq!(flags.env, ["A=x y", "B= z"]);
    }

    #[test]
    fn what_is_no_script_has_no_flags() {
        let flags = read("\x7fELF\n#ZG --cpus 2\n").unwrap_or_else(|error| panic!("{error:?}"));
        assert_eq!(flags.cpus, None);
    }

    #[test]
    fn an_error_names_the_line() {
        let told = |text| format!("{:?}", read(text).err().expect("it is wrong"));
        assert!(told("#!/bin/sh\n#ZG --cpu 2\n").contains("job.sh:2: unexpected argument '--cpu'"));
        assert!(told("#!/bin/sh\n#ZG --name 'x\n").contains("job.sh:2: a quote is not closed"));
    }
}
