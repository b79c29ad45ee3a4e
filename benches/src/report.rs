//! One page of everything: runs the measurements, each in a process of its own, and writes `benches/REPORT.md` from
//! what they kept.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use tidings_benches::QUICK;
use tidings_benches::table::Table;

const FOLDER: &str = env!("CARGO_MANIFEST_DIR");

/// What the page shows, in order: the report and its part, which together name the table and its plot.
const SHOWN: [(&str, &str); 39] = [
    ("spread", "last"),
    ("spread", "oversubscribed"),
    ("spread", "loss"),
    ("spread", "costs"),
    ("spread", "join"),
    ("spread", "overload"),
    ("spread", "sim"),
    ("spread", "paper"),
    ("core", "puts"),
    ("core", "merges"),
    ("core", "digests"),
    ("core", "reconciles"),
    ("core", "origins"),
    ("core", "memory"),
    ("core", "simulator"),
    ("node", "gets"),
    ("node", "views"),
    ("node", "changes"),
    ("node", "latency"),
    ("node", "throughput"),
    ("node", "fanout"),
    ("node", "starts"),
    ("node", "memory"),
    ("node", "strangers"),
    ("flags", "evaluations"),
    ("flags", "loads"),
    ("flags", "changes"),
    ("flags", "bulk"),
    ("disk", "single"),
    ("disk", "group"),
    ("disk", "unawaited"),
    ("disk", "opening"),
    ("disk", "room"),
    ("members", "kills"),
    ("members", "leaving"),
    ("members", "idle"),
    ("leaders", "campaigns"),
    ("leaders", "held"),
    ("leaders", "kills"),
];

/// What takes too long to be part of the short run, and is shown as the last long one left it.
const ONLY_FULL: [(&str, &str); 2] = [("spread", "paper"), ("spread", "sim")];

/// `[--full] [--only NAME]`.
pub(crate) fn report(arguments: &[String]) -> ExitCode {
    let (mut is_full, mut only) = (false, None);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--full" => is_full = true,
            "--only" => only = rest.next(),
            _ => {
                eprintln!("usage: tidings-benches report [--full] [--only NAME]");
                return ExitCode::from(2);
            }
        }
    }
    let mut all_ran = true;
    let is_wanted = |of: &&(&str, &str)| match only {
        Some(only) => of.0 == only || of.1 == only,
        None => is_full || !ONLY_FULL.contains(of),
    };
    for (report, part) in SHOWN.iter().filter(is_wanted) {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args([report, part]);
        if !is_full {
            command.env(QUICK, "1");
        }
        let began = std::time::Instant::now();
        all_ran &= command.status().is_ok_and(|status| status.success());
        println!("  {report} {part} took {:.0} s", began.elapsed().as_secs_f64());
    }
    std::fs::write(Path::new(FOLDER).join("REPORT.md"), page()).expect("the folder can be written");
    println!("\nwritten: benches/REPORT.md");
    if all_ran { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn page() -> String {
    let mut page = format!(
        "# Measurements\n\nWritten by `cargo run --release -p tidings-benches --features memberlist -- report [--full]`; \
         the data is in `results/`, a table of tabs each.\n\n{}\n",
        machine()
    );
    for (report, part) in SHOWN {
        let name = format!("{report}-{part}");
        let Some(table) = Table::load(&name) else { continue };
        page.push_str(&table.markdown());
        if Path::new(FOLDER).join(format!("plots/{name}.svg")).exists() {
            _ = writeln!(page, "\n![{}](plots/{name}.svg)", table.title);
        }
        page.push('\n');
    }
    page
}

/// What it ran on; no names and no paths.
fn machine() -> String {
    let field = |file: &str, name: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or("unknown", |(_, value)| value.trim()).to_owned()
    };
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = Command::new("rustc").arg("--version").output();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "Processor: {}, {cores} cores. Memory: {}. Kernel: {}. Compiler: {}.\n",
        field("/proc/cpuinfo", "model name"),
        field("/proc/meminfo", "MemTotal"),
        kernel.trim(),
        version.unwrap_or_default()
    )
}
