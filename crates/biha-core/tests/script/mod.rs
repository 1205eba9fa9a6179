//! The language of the scenario scripts: `cluster …` begins a simulated cluster, `node …` a single node whose
//! every input is given by the script and whose every output is shown.

mod args;
mod cluster;
mod node;
mod show;

use std::error::Error;
use std::path::Path;

use goldenscript::{Command, Context};

pub type Answer = Result<String, Box<dyn Error>>;

/// Runs one scenario and compares what it printed with what the file says. UPDATE=1 writes the file instead.
pub fn run(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts").join(format!("{name}.txt"));
    let script = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let output = goldenscript::generate(&mut Script::default(), &script).unwrap();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, output).unwrap();
        return;
    }
    let line = script.lines().zip(output.lines()).position(|(a, b)| a != b);
    let line = line.unwrap_or_else(|| script.lines().count().min(output.lines().count()));
    let at = |text: &str| text.lines().skip(line).take(5).map(|l| format!("\n    {l}")).collect::<String>();
    assert!(
        script == output,
        "{name}.txt: line {}: expected{}\n  got{}\nUPDATE=1 accepts it",
        line + 1,
        at(&script),
        at(&output)
    );
}

/// What a script has begun.
#[derive(Default)]
enum Script {
    #[default]
    Nothing,
    Cluster(Box<cluster::Scene>),
    Node(Box<node::Scene>),
}

impl goldenscript::Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Answer {
        match command.name.as_str() {
            "cluster" => {
                let (scene, answer) = cluster::Scene::begin(command)?;
                *self = Script::Cluster(Box::new(scene));
                return Ok(answer);
            }
            "node" => {
                let (scene, answer) = node::Scene::begin(command)?;
                *self = Script::Node(Box::new(scene));
                return Ok(answer);
            }
            _ => {}
        }
        match self {
            Script::Nothing => Err("begin with `cluster` or `node`".into()),
            Script::Cluster(scene) => scene.run(command),
            Script::Node(scene) => scene.run(command),
        }
    }
}
