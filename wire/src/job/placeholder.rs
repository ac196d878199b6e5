//! Placeholders in arguments and paths: `{}`, `%{JOB}`, `%{CHUNK}`, `%{ATTEMPT}`, `%{NODE}`.

/// What placeholders stand for in one run.
#[derive(Clone, Copy, Debug)]
pub struct ExpandContext<'a> {
    pub job: &'a str,
    /// The number that the array gives.
    pub chunk: u64,
    pub attempt: u32,
    pub node: &'a str,
}

/// Says which placeholder is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown placeholder '%{{{name}}}' in '{value}' (known: %{{JOB}} %{{CHUNK}} %{{ATTEMPT}} %{{NODE}}, and {{}} for the chunk)"
)]
pub struct PlaceholderError {
    pub name: String,
    pub value: String,
}

/// Fails on `%{…}` that is not known, so that it is refused at submit and not run as it stands.
pub fn check_placeholders(value: &[u8]) -> Result<(), PlaceholderError> {
    let mut rest = value;
    while let Some(at) = find(rest, b"%{") {
        rest = &rest[at + 2..];
        let Some(end) = rest.iter().position(|byte| *byte == b'}') else { return Ok(()) };
        if !matches!(&rest[..end], b"JOB" | b"CHUNK" | b"ATTEMPT" | b"NODE") {
            let name = String::from_utf8_lossy(&rest[..end]).into_owned();
            return Err(PlaceholderError { name, value: crate::bytes_text(value) });
        }
        rest = &rest[end + 1..];
    }
    Ok(())
}

/// Replaces the placeholders of `value`; `{}` only where `braces` says so (arguments, not paths).
pub fn expand(value: &[u8], braces: bool, context: &ExpandContext<'_>) -> Vec<u8> {
    let mut expanded = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((&byte, tail)) = rest.split_first() {
        if braces && rest.starts_with(b"{}") {
            expanded.extend_from_slice(context.chunk.to_string().as_bytes());
            rest = &rest[2..];
        } else if let Some((text, length)) = named(rest, context) {
            expanded.extend_from_slice(text.as_bytes());
            rest = &rest[length..];
        } else {
            expanded.push(byte);
            rest = tail;
        }
    }
    expanded
}

fn named(rest: &[u8], context: &ExpandContext<'_>) -> Option<(String, usize)> {
    let name = rest.strip_prefix(b"%{")?;
    let end = name.iter().position(|byte| *byte == b'}')?;
    let text = match &name[..end] {
        b"JOB" => context.job.to_string(),
        b"CHUNK" => context.chunk.to_string(),
        b"ATTEMPT" => context.attempt.to_string(),
        b"NODE" => context.node.to_string(),
        _ => return None,
    };
    Some((text, end + 3))
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: ExpandContext<'_> = ExpandContext { job: "j", chunk: 12, attempt: 2, node: "n" };

    #[test]
    fn placeholders_stand_for_their_values() {
        assert_eq!(expand(b"{}-%{CHUNK}-%{JOB}.%{ATTEMPT}%{NODE}", true, &CONTEXT), b"12-12-j.2n");
        assert_eq!(expand(b"{}%{CHUNK}", false, &CONTEXT), b"{}12");
        assert_eq!(expand(b"100% {x} %{ %d {", true, &CONTEXT), b"100% {x} %{ %d {");
    }

    #[test]
    fn an_unknown_placeholder_is_named() {
        assert_eq!(check_placeholders(b"%{CHUNK} 5% %{JOB"), Ok(()));
        let error = check_placeholders(b"a %{CHUNKS}").unwrap_err();
        assert_eq!(error.name, "CHUNKS");
        assert!(error.to_string().contains("'%{CHUNKS}' in 'a %{CHUNKS}'"), "{error}");
    }
}
