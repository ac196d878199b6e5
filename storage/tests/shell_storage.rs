//! A real storage node over real sockets: put, get, stat, and what a kill in the middle of it costs.

mod process;

use std::time::Duration;

use content::{FetchError, Part, PutError, Source, hash_bytes};
use node::{Endpoint, EndpointConfig, PeerClass};
use wire::limit::MIB;
use wire::{BootNonce, ErrorCode, FileAddress, FileId, FileRequest, FixedPart, Message, NodeId, Role};

use process::{Site, bytes};

const TIMEOUT: Duration = Duration::from_secs(30);
const ANY_PORT: &str = "tcp://127.0.0.1:*";

fn whole(file: FileId) -> FileAddress {
    FileAddress { file, piece: None }
}

#[test]
fn what_was_put_comes_back_over_both_sockets_whole_and_in_pieces() {
    let site = Site::new();
    let mut running = site.start(ANY_PORT);
    for mut holder in [site.connect(&running), site.connect_bulk(&running)] {
        for length in [0, 1, MIB - 1, MIB, MIB + 1, 20 * MIB + 7] {
            let content = bytes(length);
            let stored = holder.put(&mut Source::of_bytes(content.clone()), 0, TIMEOUT).expect("it is stored");
            let hash = hash_bytes(&content);
            assert_eq!((stored.file, stored.hash, stored.length), (FileId::of(hash), hash, length as u64));
            let [receipt] = stored.receipts[..] else { panic!("one receipt: {stored:?}") };
            assert_eq!(receipt.node, site.node);
            let key = &site.receipt_key;
            assert!(content::verify_receipt(key, site.node, stored.file, hash, length as u64, &receipt.mac));
            let fetched = holder.fetch_bytes(whole(stored.file), Some(hash), TIMEOUT).expect("it comes back");
            assert!(fetched == content);
            assert_eq!(holder.file_length(stored.file, TIMEOUT), Ok(length as u64));
            if length > 10 {
                let piece = FileAddress { file: stored.file, piece: Some((3, length as u64 - 5)) };
                let fetched = holder.fetch_bytes(piece, None, TIMEOUT).expect("it comes back");
                assert!(fetched == content[3..length - 2]);
            }
        }
        let known = FileId::of(hash_bytes(&bytes(MIB)));
        assert_eq!(holder.have(&[known, FileId::NIL, known], TIMEOUT), Ok(vec![true, false, true]));
        let unknown = whole(FileId::of(hash_bytes(b"nobody put this")));
        assert_eq!(holder.fetch_bytes(unknown, None, TIMEOUT), Err(FetchError::FileUnknown(unknown)));
        let beyond = FileAddress { file: known, piece: Some((MIB as u64 - 1, 2)) };
        assert!(matches!(holder.fetch_bytes(beyond, None, TIMEOUT), Err(FetchError::OutOfRange { .. })));
    }
    assert_eq!(running.terminate(), Some(0));
    assert_eq!(std::fs::read_dir(site.path("data/staging")).expect("there").count(), 0);
}

#[test]
fn files_and_receipts_outlive_the_process() {
    let site = Site::new();
    let mut running = site.start(ANY_PORT);
    let stored = site.connect(&running).put(&mut Source::of_bytes(bytes(3 * MIB)), 0, TIMEOUT).expect("it is stored");
    running.kill();
    let running = site.start(ANY_PORT);
    let mut holder = site.connect(&running);
    let fetched = holder.fetch_bytes(whole(stored.file), Some(stored.hash), TIMEOUT).expect("it comes back");
    assert!(fetched == bytes(3 * MIB));
    let again = holder.put(&mut Source::of_bytes(fetched), 0, TIMEOUT).expect("it is there");
    assert_eq!(again, stored);
}

#[test]
fn an_upload_survives_a_kill_of_the_storage_node() {
    let site = Site::new();
    let mut running = site.start(ANY_PORT);
    let address = running.control.clone();
    let mut holder = site.connect(&running);
    let content = bytes(192 * MIB);
    let hash = hash_bytes(&content);
    let path = site.path("content");
    std::fs::write(&path, &content).expect("written");
    let putting = std::thread::spawn(move || {
        let mut source = Source::of_file(&path).expect("it is there");
        holder.put_hashed(&mut source, hash, 0, Duration::from_secs(60))
    });
    while site.staged() < 8 * MIB as u64 {
        assert!(!putting.is_finished(), "{:?}", putting.join());
        std::thread::yield_now();
    }
    running.kill();
    assert!(!putting.is_finished(), "the kill came too late to show anything");
    let running = site.start(&address);
    let stored = putting.join().expect("no panic").expect("it is stored");
    assert_eq!(stored.length, content.len() as u64);
    let mut holder = site.connect_bulk(&running);
    let fetched = holder.fetch_bytes(whole(stored.file), Some(hash), TIMEOUT).expect("it comes back");
    assert!(fetched == content);
}

#[test]
fn another_try_goes_on_where_the_last_one_ended_and_leaves_nothing_behind() {
    let site = Site::new();
    let running = site.start(ANY_PORT);
    let mut holder = site.connect(&running);
    let content = bytes(20 * MIB);
    let hash = hash_bytes(&content);
    let path = site.path("late");
    // The last byte cannot be read yet, so the first try ends early.
    let parts = || {
        let late = Part::File { path: path.clone(), offset: 0, length: 1 };
        Source::new(vec![Part::Bytes(content[..content.len() - 1].to_vec()), late])
    };
    let failed = holder.put_hashed(&mut parts(), hash, 0, TIMEOUT);
    assert!(matches!(failed, Err(PutError::Local { .. })), "{failed:?}");
    std::fs::write(&path, &content[content.len() - 1..]).expect("written");
    let stored = holder.put_hashed(&mut parts(), hash, 0, TIMEOUT).expect("it is stored");
    assert_eq!(stored.hash, hash);
    assert_eq!(std::fs::read_dir(site.path("data/staging")).expect("there").count(), 0);
}

#[test]
fn a_download_goes_on_after_a_restart_and_never_shows_half_a_file() {
    let site = Site::new();
    let mut running = site.start(ANY_PORT);
    let address = running.control.clone();
    let content = bytes(64 * MIB);
    let mut holder = site.connect(&running);
    let stored = holder.put(&mut Source::of_bytes(content.clone()), 0, TIMEOUT).expect("it is stored");
    let mut came = Vec::new();
    let mut restarted = None;
    let fetched = holder.fetch(whole(stored.file), Some(stored.hash), Duration::from_secs(60), &mut |piece| {
        came.extend_from_slice(piece);
        if came.len() > 20 * MIB && restarted.is_none() {
            running.kill();
            restarted = Some(site.start(&address));
        }
        Ok(())
    });
    fetched.expect("it comes back");
    assert!(came == content && restarted.is_some());
}

#[test]
fn a_content_that_does_not_fit_the_disk_is_refused_before_its_first_byte() {
    let site = Site::new();
    let running = site.start(ANY_PORT);
    let mut holder = site.connect(&running);
    let endless = Part::File { path: "/dev/zero".into(), offset: 0, length: 1 << 43 };
    let refused = holder.put_hashed(&mut Source::new(vec![endless]), hash_bytes(b"whatever"), 0, TIMEOUT);
    assert!(matches!(refused, Err(PutError::Refused { code: ErrorCode::DiskFull, .. })), "{refused:?}");
    let wrong = holder.put_hashed(&mut Source::of_bytes(bytes(9)), hash_bytes(b"whatever"), 0, TIMEOUT);
    assert!(matches!(wrong, Err(PutError::Refused { code: ErrorCode::HashMismatch, .. })), "{wrong:?}");
    assert_eq!(std::fs::read_dir(site.path("data/staging")).expect("there").count(), 0);
}

#[test]
fn the_bare_request_of_the_seed_gets_response_and_content_in_one_message() {
    let site = Site::new();
    let running = site.start(ANY_PORT);
    let content = bytes(3 * MIB + 9);
    let stored = site.connect(&running).put(&mut Source::of_bytes(content.clone()), 0, TIMEOUT).expect("it is stored");
    let me = NodeId::random();
    let mut endpoint =
        Endpoint::open(EndpointConfig::new(me, BootNonce::new(1, 1), site.client.clone())).expect("an endpoint");
    let peer = endpoint
        .connect(&running.control, Some(site.storage_key), Role::Storage, PeerClass::Control)
        .expect("a connection");
    let mut ask = |file: FileId| {
        let request = FileRequest { file_uuid: file.into(), ..FileRequest::DEFAULT }.seed_frame(me, &[]);
        assert_eq!(request.len(), 41);
        endpoint.send(peer, request).expect("it is taken");
        let mut answer: Option<Vec<Vec<u8>>> = None;
        while answer.is_none() {
            endpoint.wait(None);
            endpoint.drain(1, &mut |_, _, frames| answer = Some(frames.iter().map(|frame| frame.to_vec()).collect()));
        }
        answer.expect("it came")
    };
    let answer = ask(stored.file);
    assert_eq!(answer.iter().map(Vec::len).collect::<Vec<_>>(), [49, MIB, MIB, MIB, 9]);
    let Ok(Message::FileResponse(response, _)) = Message::decode(&answer[0]) else { panic!("{answer:?}") };
    assert_eq!((response.file_uuid.file(), response.file_length.get()), (stored.file, content.len() as u64));
    assert!(answer[1..].concat() == content);

    let answer = ask(FileId([7; 16]));
    let Ok(Message::Error(error, detail)) = Message::decode(&answer[0]) else { panic!("{answer:?}") };
    assert_eq!((error.code.get(), error.regarding), (ErrorCode::FileUnknown as u16, 3));
    assert!(String::from_utf8_lossy(detail).contains("07070707-0707"), "the error names the file");
}

#[test]
fn a_file_too_large_for_one_message_is_refused_with_what_to_do() {
    let site = Site::new();
    let running = site.start(ANY_PORT);
    // A sparse file takes no room here; over the wire it is 65 MiB of zeroes.
    let path = site.path("sparse");
    std::fs::File::create(&path).expect("made").set_len(65 * MIB as u64).expect("sized");
    let mut holder = site.connect_bulk(&running);
    let stored = holder.put(&mut Source::of_file(&path).expect("there"), 0, TIMEOUT).expect("it is stored");
    let me = NodeId::random();
    let mut endpoint =
        Endpoint::open(EndpointConfig::new(me, BootNonce::new(1, 1), site.client.clone())).expect("an endpoint");
    let peer = endpoint.connect(&running.bulk, None, Role::Storage, PeerClass::Bulk).expect("a connection");
    let request = FileRequest { file_uuid: stored.file.into(), ..FileRequest::DEFAULT }.seed_frame(me, &[]);
    endpoint.send(peer, request).expect("it is taken");
    let mut text = None;
    while text.is_none() {
        endpoint.wait(None);
        endpoint.drain(1, &mut |_, _, frames| {
            let Ok(Message::Error(error, detail)) = Message::decode(&frames[0]) else { panic!("{frames:?}") };
            assert_eq!(error.code.get(), ErrorCode::TooLarge as u16);
            text = Some(String::from_utf8_lossy(detail).into_owned());
        });
    }
    assert!(text.as_ref().is_some_and(|text| text.contains("ranges")), "{text:?}");
    let last = FileAddress { file: stored.file, piece: Some((65 * MIB as u64 - 2, 2)) };
    assert_eq!(holder.fetch_bytes(last, None, TIMEOUT), Ok(vec![0, 0]));
}

#[test]
fn a_wrong_settings_file_is_told_with_its_line() {
    let site = Site::new();
    let path = site.path("wrong.toml");
    std::fs::write(&path, "dir = 'data'\nbidn = 'tcp://127.0.0.1:1'\n").expect("written");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_zg-storage")).arg(&path).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("wrong.toml") && text.contains("bidn"), "{text}");
}

/// Somebody writes to a stored file, past its storage node.
fn flip(site: &Site, file: FileId, at: u64) -> std::path::PathBuf {
    use std::os::unix::fs::{FileExt, PermissionsExt};
    let name = file.to_string();
    let path = site.path("data/files").join(&name[0..2]).join(&name[2..4]).join(format!("{name}.dat"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("it is ours");
    let open = std::fs::File::options().read(true).write(true).open(&path).expect("it is there");
    let mut byte = [0];
    open.read_exact_at(&mut byte, at).expect("it is as long");
    open.write_all_at(&[byte[0] ^ 1], at).expect("written");
    path
}

#[test]
fn a_copy_that_somebody_wrote_to_is_read_again_and_one_that_is_wrong_is_put_right_by_the_next_put() {
    let site = Site::new();
    let running = site.start(ANY_PORT);
    let mut holder = site.connect(&running);
    let content = bytes(3 * MIB + 5);
    let stored = holder.put(&mut Source::of_bytes(content.clone()), 0, TIMEOUT).expect("it is stored");
    let address = whole(stored.file);
    flip(&site, stored.file, 7);
    flip(&site, stored.file, 7);
    assert_eq!(holder.have(&[stored.file], TIMEOUT), Ok(vec![false]), "it may be wrong");
    let fetched = holder.fetch_bytes(address, Some(stored.hash), TIMEOUT).expect("it is right, as it turns out");
    assert!(fetched == content);
    assert_eq!(holder.have(&[stored.file], TIMEOUT), Ok(vec![true]));

    flip(&site, stored.file, 7);
    assert_eq!(holder.fetch_bytes(address, Some(stored.hash), TIMEOUT), Err(FetchError::FileUnknown(address)));
    let again = holder.put(&mut Source::of_bytes(content.clone()), 0, TIMEOUT).expect("it is stored again");
    assert_eq!(again, stored);
    assert!(holder.fetch_bytes(address, Some(stored.hash), TIMEOUT).expect("it comes back") == content);

    // A put meets it before anybody reads it.
    flip(&site, stored.file, 2 * MIB as u64);
    assert_eq!(holder.put(&mut Source::of_bytes(content.clone()), 0, TIMEOUT), Ok(again));
    assert!(holder.fetch_bytes(address, Some(stored.hash), TIMEOUT).expect("it comes back") == content);
}

#[test]
fn an_outline_that_is_gone_is_made_again_before_it_is_sent() {
    let site = Site::new();
    let running = site.start(ANY_PORT);
    let mut holder = site.connect(&running);
    let stored = holder.put(&mut Source::of_bytes(bytes(3 * MIB)), 0, TIMEOUT).expect("it is stored");
    let name = stored.file.to_string();
    let outline = site.path("data/files").join(&name[0..2]).join(&name[2..4]).join(format!("{name}.out"));
    let kept = std::fs::read(&outline).expect("it is there");
    std::fs::remove_file(&outline).expect("it is ours");
    let asked = FileRequest {
        file_uuid: stored.file.into(),
        length: wire::U64::new(96),
        request: wire::U64::new(5),
        part: wire::U32::new(wire::PART_OUTLINE),
        ..FileRequest::DEFAULT
    };
    let me = NodeId::random();
    let mut endpoint =
        Endpoint::open(EndpointConfig::new(me, BootNonce::new(1, 1), site.client.clone())).expect("an endpoint");
    let peer = endpoint.connect(&running.bulk, None, Role::Storage, PeerClass::Bulk).expect("a connection");
    let (mut refusals, mut got) = (0, None);
    while got.is_none() {
        endpoint.send(peer, asked.frame(me, &[])).expect("it is taken");
        let mut is_answered = false;
        while !is_answered {
            endpoint.wait(None);
            endpoint.drain(1, &mut |_, _, frames| {
                is_answered = true;
                match Message::decode(&frames[0]) {
                    Ok(Message::FileResponse(..)) => got = Some(frames[1].to_vec()),
                    Ok(Message::Error(error, _)) if error.code.get() == ErrorCode::NotReady as u16 => refusals += 1,
                    other => panic!("{other:?}"),
                }
            });
        }
    }
    let got = got.expect("it came");
    assert!(got == kept && refusals > 0, "{refusals}");
    assert!(std::fs::read(&outline).expect("it is kept") == kept);
}
