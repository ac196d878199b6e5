//! Programs that know nothing of clusters, over a directory that is an input.
//!
//! What a machine does not have (a compiler, Python) is not tried there, and said.

use std::fmt::Write;
use std::fs;
use std::process::Command;

use crate::dev::Dev;

const MODULES: usize = 1000;

fn is_there(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: there is no {program}");
    }
    found
}

#[test]
fn grep_and_python_read_a_tree_of_a_thousand_files() {
    let dev = Dev::start(1);
    let tree = dev.folder().join("tree");
    let mut main = String::from("import sys\nsys.path.insert(0, sys.argv[1])\nsum = 0\n");
    for number in 0..MODULES {
        let package = tree.join(format!("p{}", number % 20));
        if number < 20 {
            fs::create_dir_all(&package).expect("made");
            fs::write(package.join("__init__.py"), "").expect("written");
        }
        fs::write(package.join(format!("m{number}.py")), format!("value = {number}\n")).expect("written");
        writeln!(main, "import p{}.m{number} as m\nsum += m.value", number % 20).expect("a string");
    }
    fs::write(tree.join("main.py"), main + "print(sum)\n").expect("written");

    let script = "cd \"$ZG_INPUT_DIR/tree\" && grep -rh '^value = .*7$' . | wc -l && find . -type f | wc -l";
    let said = dev.zg(&["run", "--input", "tree", "--", "sh", "-c", script]).expect_success();
    assert_eq!(said.text(), format!("{}\n{}\n", MODULES / 10, MODULES + 21));
    if is_there("python3") {
        let script = "python3 \"$ZG_INPUT_DIR/tree/main.py\" \"$ZG_INPUT_DIR/tree\"";
        let said = dev.zg(&["run", "--input", "tree", "--", "sh", "-c", script]).expect_success();
        assert_eq!(said.text(), format!("{}\n", MODULES * (MODULES - 1) / 2));
    }
    dev.stop();
}

#[test]
fn a_compiler_builds_what_is_an_input() {
    if !is_there("cc") {
        return;
    }
    let dev = Dev::start(1);
    let tree = dev.folder().join("source");
    fs::create_dir_all(tree.join("include")).expect("made");
    let mut main = String::from("#include <stdio.h>\n#include \"all.h\"\nint main(void) { int sum = 0;\n");
    for number in 0..20 {
        let source = format!("#include \"all.h\"\nint f{number}(void) {{ return {number}; }}\n");
        fs::write(tree.join(format!("f{number}.c")), source).expect("written");
        fs::write(tree.join(format!("include/f{number}.h")), format!("int f{number}(void);\n")).expect("written");
        writeln!(main, "sum += f{number}();").expect("a string");
    }
    let all: String = (0..20).map(|number| format!("#include \"f{number}.h\"\n")).collect();
    fs::write(tree.join("include/all.h"), all).expect("written");
    fs::write(tree.join("main.c"), main + "printf(\"%d\\n\", sum); return 0; }\n").expect("written");

    let script = "cc -I \"$ZG_INPUT_DIR/source/include\" -o \"$ZG_OUTPUT_DIR/built\" \"$ZG_INPUT_DIR\"/source/*.c &&
        \"$ZG_OUTPUT_DIR/built\"";
    let said = dev.zg(&["run", "--input", "source", "--", "sh", "-c", script]).expect_success();
    assert_eq!(said.text(), "190\n");
    dev.stop();
}
