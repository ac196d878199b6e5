//! doc/wire.md says what the code does.

#[test]
fn the_document_is_what_the_tables_generate() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../doc/wire.md");
    let written = std::fs::read_to_string(path).expect("doc/wire.md is there");
    assert!(written == wire::doc::markdown(), "doc/wire.md is out of date; run: cargo xtask wire-doc");
}
