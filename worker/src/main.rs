//! Starts a slot process when called as `zg-worker slot`.

fn main() {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "slot") {
        worker::slot::process::run();
    }
    eprintln!("usage: zg-worker slot (started by a worker, with its link as standard input)");
    std::process::exit(2);
}
