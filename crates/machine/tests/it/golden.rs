//! Golden scripts: `testdata/*.txt`. A block is a command with a body, `----`, and what must come of it, up to a
//! blank line. `UPDATE_EXPECT=1` writes what came instead; review it as a diff.

use std::{fs, path::Path};

use crate::script::Script;

#[test]
fn every_script_comes_out_as_written() {
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let directory = Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("testdata");
    let mut count = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let came = run(&text);
        if update {
            fs::write(&path, came).unwrap();
        } else {
            assert!(came == text, "{} comes out as:\n{came}", path.display());
        }
        count += 1;
    }
    assert!(count >= 10, "{count} scripts");
}

fn run(text: &str) -> String {
    let mut script = Script::new();
    let blocks = text.trim_end().split("\n\n").map(|block| {
        let asked = block.split("\n----").next().unwrap();
        let (comments, asked): (Vec<&str>, Vec<&str>) = asked.lines().partition(|line| line.starts_with('#'));
        let came = match asked.split_first() {
            Some((line, body)) => {
                format!("{}\n----\n{}", asked.join("\n"), script.run(line, &body.join("\n")))
            }
            None => String::new(),
        };
        let comments: String = comments.iter().map(|comment| format!("{comment}\n")).collect();
        format!("{comments}{}", came.trim_end())
    });
    format!("{}\n", blocks.collect::<Vec<_>>().join("\n\n"))
}
