//! Prints doc/wire.md, generated from the tables of this crate: `cargo xtask wire-doc` writes it to its place.

fn main() {
    print!("{}", wire::doc::markdown());
}
