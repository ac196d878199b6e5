//! `zg-worker SETTINGS.toml`: runs a worker until SIGTERM or SIGINT. As `zg-worker slot` it is one of its slots'
//! processes, as `zg-worker watch` the watchdog of its mount.

use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: zg-worker SETTINGS.toml\n       zg-worker slot [GROUP..] (started by a worker, with its link as standard input)\n       \
zg-worker watch MOUNT SOURCE (started by a worker, which says on standard input that it is there)";

// The program that people run has no bugs on purpose.
const _: () = assert!(!planted::IS_BUILT_IN);

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (path, more) = (arguments.next(), arguments.next());
    let path = match (path, more) {
        (Some(word), group) if word == "slot" => {
            let directories = group.into_iter().chain(arguments).map(PathBuf::from).collect();
            worker::slot::process::run(worker::slot::Group::at(directories).as_ref())
        }
        (Some(word), Some(mount)) if word == "watch" => {
            let Some(source) = arguments.next().and_then(|source| source.into_string().ok()) else {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            };
            node::log::init();
            worker::watch::run(&PathBuf::from(mount), &source);
            return ExitCode::SUCCESS;
        }
        (Some(word), None) if word == "--help" => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        (Some(path), None) => PathBuf::from(path),
        (None, _) | (Some(_), Some(_)) => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    node::log::init();
    let ended = worker::Config::load(&path).map_err(Into::into).and_then(|config| worker::shell::run(&config));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("zg-worker: {error}");
            ExitCode::FAILURE
        }
    }
}
