//! A cache that is too small for everything: what a program has open stays, and goes when it has closed it.

mod site;

use std::fs;

use site::mounted::{MIB, Mounted, bytes, stored};
use wire::Cause;

#[test]
fn what_a_program_has_open_stays_while_the_cache_is_full() {
    let Some(mut mounted) = Mounted::new() else { return };
    let content = bytes(3 * MIB);
    let undeclared = mounted.input(&content, b"u");
    let pressing = [mounted.input(&bytes(4 * MIB), b"f")];
    let more = [mounted.input(&bytes(5 * MIB), b"f")];
    let _running = mounted.site.start_in_cluster_with("cache_size_max = 6291456");
    let (path, go) = (stored(&mounted, &undeclared), mounted.site.path("go"));
    let by_id = mounted.dir().join("fs/by-id").join(undeclared.0.to_string());
    let script = format!(
        "exec 3<'{}'; echo open; until [ -e '{}' ]; do sleep 0.05; done; cmp - '{}' <&3",
        by_id.display(),
        go.display(),
        mounted.site.path("content").display()
    );
    fs::write(mounted.site.path("content"), &content).expect("written");
    let job = mounted.begin(&[], &script, "said");
    assert_eq!(mounted.run(&pressing, "wc -c <\"$ZG_INPUT_DIR/f\"").0, Cause::None);
    assert!(path.exists(), "somebody has it open");
    // Nothing of it can come again.
    mounted.site.is_storage_silent = true;
    fs::write(go, "").expect("written");
    mounted.site.until("the program ends", |site| site.results.contains_key(&(job, 0)));
    assert_eq!(mounted.site.results[&(job, 0)].cause, Cause::None);
    mounted.site.is_storage_silent = false;
    assert_eq!(mounted.run(&more, "wc -c <\"$ZG_INPUT_DIR/f\"").0, Cause::None);
    assert!(!path.exists(), "nobody has it open");
}
