//! Inputs that cannot be had whole: the chunk is told soon, and what is put right is had.

mod site;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use node::Clock;
use site::Site;
use site::mounted::{MIB, bytes, flip, script_over};
use wire::job::Input;
use wire::{Cause, Duration, FileId};

/// Runs a job over one input and returns how it ended and what it printed.
fn run(site: &mut Site, input: &(FileId, Input), script: &str) -> (Cause, String) {
    let spec = script_over(std::slice::from_ref(input), script);
    let job = site.run(b"", &[input.0], &spec);
    let result = site.results[&(job, 0)];
    let streams = site.streams(result.bundle);
    (result.cause, streams.stdout().to_owned())
}

fn a_rotten_input_is_missed_at_once_and_had_when_it_is_put_right(settings: &str) {
    let mut site = Site::new();
    let content = bytes(2 * MIB);
    let (file, hash) = site.store(&content);
    let path = site.store.path(file).expect("it is stored");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("it is ours");
    flip(&path, MIB as u64);
    let input = Input { hash, file_length: content.len() as u64, path: b"f".to_vec(), ..Input::default() };
    let mut running = site.start_in_cluster_with(settings);
    let (clock, script) = (Clock::new(), "wc -c <\"$ZG_INPUT_DIR/f\"");
    let started = clock.now();
    assert_eq!(run(&mut site, &(file, input.clone()), script), (Cause::InputMissing, String::new()));
    assert!(clock.now().since(started) < Duration::from_secs(10), "it waited for what is wrong");
    flip(&path, MIB as u64);
    assert_eq!(run(&mut site, &(file, input), script), (Cause::None, "2097152\n".to_owned()));
    assert_eq!(running.terminate(), Some(0));
}

#[test]
fn a_rotten_input_is_missed_at_once_where_inputs_are_written_out() {
    a_rotten_input_is_missed_at_once_and_had_when_it_is_put_right("fuse = false");
}

#[test]
fn a_rotten_input_is_missed_at_once_where_inputs_are_mounted() {
    a_rotten_input_is_missed_at_once_and_had_when_it_is_put_right("");
}
