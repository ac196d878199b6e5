//! doc/wire.md, made from the tables that the code itself uses, so that it cannot be wrong about them.

use std::fmt::Write;

use crate::{ErrorCode, GenericMessage, HEADER_SIZE, KINDS, Role, StatusState, limit};

const HEAD: &str = "# The wire\n\n\
Generated from the crate `wire` by `cargo xtask wire-doc`; a test holds them equal.\n\n\
Every ZeroMQ message is one multipart message whose first frame starts with `generic_message`. All integers are\n\
little-endian, structs are packed. A uuid is its two big-endian halves, each a little-endian u64: `upper`, then `lower`.\n\
`header_length` is the length of the whole fixed part. A receiver takes any length from the kind's first size upwards:\n\
fields that are missing, or only half there, have the default below (zero where none is given); bytes that it does not\n\
know are skipped. A length below the first size or beyond the frame, an unknown number, and number 0 are answered with\n\
`error`. Numbers are never reused.\n\n";

const BODIES: &str = "## Bodies\n\n\
Varints are LEB128 (7 bits a byte, lowest first); a string is a varint length, then bytes; a list is a varint count,\n\
then its items; an option is a varint, 0 for none, else the value + 1.\n\n\
**Job body** (`submit_job`, `worker_request`): `program_length` bytes of program; `num_input_files` uuids of 16 bytes;\n\
the spec to the end: version byte 1, name, arguments (list), environment (list of key, value), cwd, submit directory,\n\
array (list of first, last - first, step; then the most that run at once), lines (list), inputs (list of: hash 32 bytes,\n\
file length, flags byte [1 executable, 2 a piece, 4 a tree], [offset, length], path), option input of standard input, option input\n\
of the program, output globs (list), cpus in thousandths, memory in bytes, priority i32, time limit in ms, retries,\n\
retry_on (bits of the causes), exit codes to retry (string of bytes), crash limit, option max_fails, output size limit,\n\
flags byte [1 prefetch; absent from an older client].\n\
A peer that knows only the seed's struct sends no spec.\n\n\
**Results** (`worker_status` with `num_runs` > 0): `num_files` stored files; base time in us since 1970; `num_runs` runs,\n\
each: first chunk, count, then for each chunk: flags byte (1 not a plain exit 0, 2 has a bundle, 4 never started),\n\
start - base in us (0 if it never started),\n\
duration in us, cpu in us, max RSS in KiB, [option exit code, signal byte, cause byte], [file index, offset, index length,\n\
stdout length, stderr length, outputs length]. A bundle is its index, standard output, standard error, then the outputs\n\
without gaps. The index is a list of: name, length, hash 32 bytes, mode.\n\n\
**Stored file**: uuid 16 bytes, hash 32 bytes, length, class byte (0 input, 1 result, 2 temp, 3 tree), list of receipts: node\n\
uuid 16 bytes, MAC 32 bytes (BLAKE3 keyed with the cluster's receipt key).\n\n\
**Tree** (a stored file of class 3, at most 10,000,000 entries): `zgtree1` and a newline, files u32, entries u32, length of the names\n\
u64; files of 40 bytes: hash 32, length u64; entries of 80 bytes: offset of the name u64, its length u16, kind u8 (0 file,\n\
1 directory, 2 symlink), executable u8, file u32 (2^32 - 1 = none), first u64 (offset in the file, first child, or offset\n\
of the target in the names), length u64 (bytes, children, or bytes of the target), mtime in s since 1970 i64, zero u64,\n\
hash 32; the names. Entry 0 is the root; entries stand breadth first, the children of a directory ascending by name.\n\n\
**Chunk item** (29 bytes): job uuid 16, first u32, count u32, attempt u32, state u8 (1 queued, 2 running, 3 ended well,\n\
4 ended badly). **Running item** (44 bytes): job uuid 16, first u32, count u32, attempt u32, worker uuid 16.\n\n\
**Event** (`watch_batch`): number byte, string of fields. 1 job accepted, 2 chunks ended, 3 holder freed, 4 chunks\n\
waiting, 5 job ended, 6 epoch granted, 7 node registered, 8 job snapshot; fields as `wire::event` writes them. A number\n\
that is not known is skipped.\n\n\
**Log entry**: version byte 1, the leader's stamp u64 in us since 1970, then the accepted requests as they came, each a\n\
string. Kinds from 200 on are the leader's own words, and exist only there.\n";

/// The whole document.
pub fn markdown() -> String {
    let mut text = String::from(HEAD);
    let _ = writeln!(text, "## generic_message, {HEADER_SIZE} bytes\n\n| offset | bytes | field |\n|---|---|---|");
    let _ =
        writeln!(text, "| 0 | 1 | message_type |\n| 1 | 16 | node_uuid: the sender |\n| 17 | 8 | header_length |\n");
    debug_assert_eq!(size_of::<GenericMessage>(), 25);
    kinds(&mut text);
    text.push_str(BODIES);
    numbers(&mut text);
    text
}

fn kinds(text: &mut String) {
    let _ = writeln!(text, "## Messages\n\n| number | name | first size | size now | sent by |\n|---|---|---|---|---|");
    for row in KINDS {
        let all = [Role::Master, Role::LoadBalancer, Role::Worker, Role::Storage, Role::Gateway, Role::Client];
        let senders = row.kind.senders();
        let words = if senders.len() == all.len() {
            "all".into()
        } else {
            senders.iter().map(|role| role.word()).collect::<Vec<_>>().join(", ")
        };
        let _ = writeln!(text, "| {} | {} | {} | {} | {words} |", row.kind as u8, row.name, row.size_min, row.size);
    }
    for row in KINDS {
        let _ = writeln!(text, "\n### {} {}\n\n{}\n", row.kind as u8, row.name, row.doc.trim());
        let _ = writeln!(text, "| offset | bytes | field | type | default | meaning |\n|---|---|---|---|---|---|");
        for field in row.fields {
            let type_name = field
                .type_name
                .rsplit("::")
                .next()
                .unwrap_or(field.type_name)
                .to_lowercase()
                .replace("uuidhalves", "uuid")
                .replace("clientkey", "key");
            let _ = writeln!(
                text,
                "| {} | {} | {} | {type_name} | {} | {} |",
                field.offset,
                field.size,
                field.name,
                default_text(field.default),
                field.doc.trim().replace(" / ", " ")
            );
        }
        let _ = writeln!(text, "\nBody: {}", row.body);
    }
    text.push('\n');
}

/// The number inside `U32::new(1)`.
fn default_text(source: &str) -> &str {
    let inner = source.split_once("new(").map_or(source, |(_, rest)| rest.trim_end_matches(')'));
    match inner {
        "u64::MAX" => "2^64 - 1",
        "u32::MAX" => "2^32 - 1",
        "crate::limit::BLOCK_SIZE as u64" => "1048576",
        other => other,
    }
}

fn numbers(text: &mut String) {
    let _ = writeln!(text, "\n## Numbers\n\n| code | word | meaning |\n|---|---|---|");
    for code in ErrorCode::ALL {
        let _ = writeln!(text, "| {} | {code} | {} |", *code as u16, code.meaning());
    }
    let states: Vec<String> = StatusState::ALL.iter().map(|state| format!("{} {state}", *state as u8)).collect();
    let _ = writeln!(text, "\nworker_status.state: {}.", states.join(", "));
    let _ = writeln!(text, "\n| limit | value |\n|---|---|");
    for (name, value) in [
        ("frame", limit::FRAME_SIZE_MAX as u64),
        ("block, and content in one frame", limit::BLOCK_SIZE as u64),
        ("file answered whole to a bare file_request", limit::WHOLE_FILE_SIZE_MAX),
        ("chunks of a job", limit::CHUNKS_MAX),
        ("program in the request", limit::PROGRAM_SIZE_MAX as u64),
        ("inputs in the request", limit::INPUTS_MAX as u64),
        ("arguments and environment", limit::ARGUMENTS_SIZE_MAX as u64),
        ("submit_job, whole", limit::SUBMIT_SIZE_MAX as u64),
    ] {
        let _ = writeln!(text, "| {name} | {value} |");
    }
}
