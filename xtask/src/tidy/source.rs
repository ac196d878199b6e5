//! What holds in every Rust file: it says its subject first, its name says something, and nothing in it is put off.

use super::Violations;

/// Names that say nothing about their subject.
const EMPTY_NAMES: &[&str] = &["util", "utils", "helper", "helpers", "manager", "handler", "common", "base"];

/// Code that says "later".
const PUT_OFF: &[&str] = &["todo!", "unimplemented!", "#[ignore"];

/// Checks one file.
pub(super) fn check_file(path: &str, text: &str, violations: &mut Violations) {
    if !text.starts_with("//!") {
        violations.push(format!("{path}:1: a file opens with `//!`, its subject in one sentence"));
    }
    for part in path.trim_end_matches(".rs").split('/').filter(|part| EMPTY_NAMES.contains(part)) {
        violations.push(format!("{path}:1: the name `{part}` says nothing about the subject"));
    }
    for (index, line) in code_only(text).lines().enumerate() {
        for put_off in PUT_OFF.iter().filter(|put_off| has_word(line, put_off)) {
            violations.push(format!("{path}:{}: `{put_off}` puts off what must work", index + 1));
        }
        let module = line.split_once("mod ").and_then(|(_, rest)| rest.split([' ', ';', '{']).next());
        if let Some(module) = module.filter(|module| EMPTY_NAMES.contains(module)) {
            violations.push(format!("{path}:{}: the name `{module}` says nothing about the subject", index + 1));
        }
    }
}

/// Whether `line` has `word` with no letter, digit or underscore on either side of it.
pub(super) fn has_word(line: &str, word: &str) -> bool {
    let is_name = |character: char| character.is_alphanumeric() || character == '_';
    line.match_indices(word).any(|(start, _)| {
        let goes_on = word.ends_with(is_name) && line[start + word.len()..].starts_with(is_name);
        !goes_on && !line[..start].ends_with(is_name)
    })
}

/// The text with comments and the insides of literals made blank, line by line as long as before.
///
/// So a check of the code is not misled by what the code says about itself.
pub(super) fn code_only(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(fence) = raw_string_fence(rest).filter(|_| !ends_in_name(&code)) {
            let close = format!("\"{fence}");
            let body = fence.len() + 2;
            rest[body..].find(&close).map_or(rest.len(), |end| body + end + close.len())
        } else if first == '"' {
            quoted_length(rest, '"')
        } else if first == '\'' && is_character(rest) {
            quoted_length(rest, '\'')
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        let (blank, after) = rest.split_at(length);
        code.extend(blank.chars().map(|character| if character == '\n' { '\n' } else { ' ' }));
        rest = after;
    }
    code
}

/// The `#`s of a raw string that starts here.
fn raw_string_fence(rest: &str) -> Option<&str> {
    let after = rest.strip_prefix('r')?;
    let fence = &after[..after.len() - after.trim_start_matches('#').len()];
    after[fence.len()..].starts_with('"').then_some(fence)
}

/// A letter before `r"` makes it the end of a name, but `br"` and `cr"` are raw strings too.
fn ends_in_name(code: &str) -> bool {
    let before = code.strip_suffix(['b', 'c']).unwrap_or(code);
    before.ends_with(|character: char| character.is_alphanumeric() || character == '_')
}

/// Whether the quote starts a character and not a lifetime.
fn is_character(rest: &str) -> bool {
    let mut characters = rest.chars().skip(1);
    characters.next() == Some('\\') || characters.next() == Some('\'')
}

/// The bytes up to and with the closing quote; a backslash hides the character after it.
fn quoted_length(rest: &str, quote: char) -> usize {
    let mut hidden = false;
    for (index, character) in rest.char_indices().skip(1) {
        if character == quote && !hidden {
            return index + 1;
        }
        hidden = character == '\\' && !hidden;
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, text: &str) -> Violations {
        let mut violations = Vec::new();
        check_file(path, text, &mut violations);
        violations
    }

    #[test]
    fn a_file_without_a_subject_is_found() {
        let expected = ["wire/src/x.rs:1: a file opens with `//!`, its subject in one sentence"];
        assert_eq!(check("wire/src/x.rs", "use std::fs;\n"), expected);
    }

    #[test]
    fn a_name_without_a_subject_is_found() {
        let said = "says nothing about the subject";
        assert_eq!(check("wire/src/util.rs", "//! X.\n"), [format!("wire/src/util.rs:1: the name `util` {said}")]);
        let text = "//! X.\npub mod common {\n}\n";
        assert_eq!(check("wire/src/x.rs", text), [format!("wire/src/x.rs:2: the name `common` {said}")]);
    }

    #[test]
    fn what_is_put_off_is_found_in_code_and_not_in_words_about_it() {
        let text = "//! X: todo! later.\nfn f() { todo!() }\nfn g() { h(\"todo!\") } // todo!\n#[ignore]\n";
        let said = "puts off what must work";
        let expected = [format!("x.rs:2: `todo!` {said}"), format!("x.rs:4: `#[ignore` {said}")];
        assert_eq!(check("x.rs", text), expected);
    }

    #[test]
    fn literals_and_comments_are_blank_and_the_rest_is_kept() {
        assert_eq!(code_only("a('\"', b\"x\\\"y\") /* z\n*/ b"), "a(   , b      )     \n   b");
        assert_eq!(code_only("f<'a>(r#\"one \" two\"#, '\\'')"), "f<'a>(              ,     )");
    }

    #[test]
    fn a_word_has_no_name_on_either_side() {
        assert!(has_word("use zmq::Socket", "zmq") && has_word("zmq", "zmq"));
        assert!(!has_word("use zmq_sys::x", "zmq") && !has_word("operand", "rand"));
    }
}
