//! `render`: keys as files that follow the store, for programs that read files.
//!
//! The keys below a prefix are followed by whole batches ([`feed`]). Whenever they have changed, what they give is
//! written beside what is in force and put in its place in one step ([`tree`], [`template`]): a reader sees the old
//! state or the new one. A key that cannot be a file is named and left out ([`names`]).
//!
//! A set of flags is asked of the node as a file, instead of being made of its keys: only the node knows the last good
//! definition of a malformed flag.

mod due;
mod feed;
mod file;
mod names;
mod template;
mod tree;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tokio::process::Child;
use tokio::time::Instant;

use self::due::Due;
use self::feed::{FLAGS_FILE, Fed, Feed, Keys, Source};
use self::file::OneFile;
use self::template::Template;
use self::tree::Tree;
use super::{not_started, process};
use crate::client::Target;
use crate::exit::{Exit, Failure};
use crate::signals::End;

/// Changes that come soon after each other are rendered together: after a pause this long, and after the second time at
/// the latest. From a node that tells key by key, the keys of one change come in several events as well.
const SETTLE_TIME: Duration = Duration::from_millis(50);
const SETTLE_TIME_MAX: Duration = Duration::from_secs(1);
/// When to try again what could not be written.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

const LAYOUT: &str = "\
With --prefix app/ the key app/db/pool is the file DIR/db/pool. The files of one state are in a directory of their own,
..data in DIR is a link to it, and each name in DIR is a link into ..data: a state takes the place of another in one step,
as in volumes of Kubernetes. Programs that read several files which belong together resolve ..data once, and read again if
a file is gone: the state before is removed at once. DIR belongs to this program alone. Keys that cannot be files, such as those with \"..\", are
named on the standard error and left out, and so are schemas (keys that end in $schema).

A template is written for minijinja (Jinja2). It sees the keys as nested maps, and values that are JSON as what they are:
{{ db.pool }}, {% for name, host in hosts|items %}, {{ text|tojson }}. A key that it names and that is not there is an
error; what was rendered before stays.

With --flags the file is a set of flags in flagd's format, as the node has it in force: of a malformed flag the last good
definition, if the node has seen one.

The command is run after each change of a byte, never twice at a time, with TIDINGS_OUT in its environment. While it runs,
changes wait. If it fails that is said, and rendering goes on. SIGTERM ends both. Until the command has succeeded for what
is rendered, DIR/..command_due (beside one file .NAME.command_due) is there: render, started again, then runs it although no
byte has changed.";

/// Write the keys below a prefix as files, one file by a template, or a set of flags, whenever they change; then run a
/// command
#[derive(Args, Debug)]
#[command(after_help = LAYOUT)]
pub(crate) struct Render {
    /// Keys that begin like this; what follows it is the name of the file
    #[arg(long, required_unless_present = "flags", default_value = "", hide_default_value = true)]
    prefix: String,
    /// Instead of keys a set of flags, as one file in flagd's format
    #[arg(long, value_name = "SET", conflicts_with_all = ["prefix", "template"])]
    flags: Option<String>,
    /// The directory to write; with --template or --flags the file
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Render this template to one file
    #[arg(long, value_name = "FILE")]
    template: Option<PathBuf>,
    /// Who may read the files
    #[arg(long, default_value = "0644", value_parser = mode, value_name = "MODE")]
    mode: u32,
    /// Render once, and end; with the exit code of the command, or 6 if a key could not be rendered
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    target: Target,
    /// What to run after each change
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777 && mode & 0o400 != 0);
    mode.ok_or_else(|| "permitted: 400 to 777, octal, readable for the owner".to_owned())
}

/// Where to.
enum Output {
    Tree(Tree),
    Template(Template),
    Flags(OneFile),
}

impl Output {
    fn due(&self) -> &Due {
        match self {
            Self::Tree(tree) => &tree.due,
            Self::Template(template) => &template.out.due,
            Self::Flags(file) => &file.due,
        }
    }
}

impl Render {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let client = self.target.client()?;
        let has_command = !self.command.is_empty();
        let one_file = || {
            let file = OneFile::new(&self.out, self.mode)?;
            Ok::<_, Failure>(if has_command { file.with_command() } else { file })
        };
        let output = match (&self.flags, &self.template) {
            (Some(_), _) => Output::Flags(one_file()?),
            (None, Some(template)) => Output::Template(Template::new(template, one_file()?)?),
            (None, None) => {
                let tree = Tree::open(&self.out, self.mode)?;
                Output::Tree(if has_command { tree.with_command() } else { tree })
            }
        };
        let source = match &self.flags {
            Some(set) => Source::Flags(set.clone()),
            None => Source::Keys(self.prefix.clone()),
        };
        let feed = Feed::start(client, source, !self.once);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { Rendering::new(self, output)?.run(feed).await })
    }
}

/// What is rendered, and what is to be done next.
struct Rendering<'a> {
    render: &'a Render,
    output: Output,
    keys: Keys,
    /// When to render, and since when that has waited.
    due: Option<(Instant, Instant)>,
    child: Option<Child>,
    /// The command is to be run although no byte changes: a process before did not get so far, or this one failed on
    /// its way from the bytes to the command.
    is_command_due: bool,
    /// What was left out last, and why the node is not followed.
    left_out: Vec<String>,
    lost: String,
    end: End,
}

impl<'a> Rendering<'a> {
    fn new(render: &'a Render, output: Output) -> Result<Self, Failure> {
        let end = End::new()?;
        let (keys, left_out, lost) = (Keys::default(), Vec::new(), String::new());
        let is_command_due = output.due().is_noted();
        Ok(Self { render, output, keys, due: None, child: None, is_command_due, left_out, lost, end })
    }

    async fn run(mut self, mut feed: Feed) -> Result<(), Failure> {
        loop {
            // The next state waits until the command has done with this one.
            let due = self.due.filter(|_| self.child.is_none()).map(|(at, _)| at);
            tokio::select! {
                () = self.end.recv() => return self.stop().await,
                status = ended(&mut self.child) => {
                    self.child = None;
                    self.command_ended(status)?;
                    if self.render.once {
                        return self.once_done();
                    }
                }
                // What is rendered once depends on nothing that comes later.
                news = feed.next(), if !(self.render.once && self.child.is_some()) => match news {
                    Fed::Told(told) => self.take(&told),
                    Fed::Lost(said) => self.note_lost(said),
                    Fed::Failed(failure) => return Err(failure),
                },
                () = at(due) => {
                    self.due = None;
                    self.render_now()?;
                    if self.render.once && self.child.is_none() {
                        return self.once_done();
                    }
                }
            }
        }
    }

    /// Says once why the node is not followed.
    fn note_lost(&mut self, said: String) {
        if self.lost != said {
            eprintln!("tidings: what is rendered stays, trying again: {said}");
            self.lost = said;
        }
    }

    fn take(&mut self, told: &crate::client::Told) {
        self.lost.clear();
        if told.name == "waiting" {
            eprintln!(
                "tidings: what is rendered stays: the rest of a batch of another node has not come yet"
            );
        }
        if self.keys.apply(told) {
            let now = Instant::now();
            let since = self.due.map_or(now, |(_, since)| since);
            self.due = Some(((now + SETTLE_TIME).min(since + SETTLE_TIME_MAX), since));
        }
    }

    /// Renders, and begins the command if a byte has changed, or it was not run for the last change.
    fn render_now(&mut self) -> Result<(), Failure> {
        let named = names::named(&self.render.prefix, self.keys.now());
        if named.left_out != self.left_out {
            named.left_out.iter().for_each(|why| eprintln!("tidings: left out: {why}"));
            self.left_out.clone_from(&named.left_out);
        }
        let rendered = match &self.output {
            Output::Tree(tree) => tree.write(&named.files),
            Output::Template(template) => template.write(&named.files),
            Output::Flags(file) => file.write(named.files.get(FLAGS_FILE).copied().unwrap_or_default()),
        };
        match rendered {
            Ok(is_changed) if !self.render.command.is_empty() && (is_changed || self.is_command_due) => {
                self.begin_command()
            }
            Ok(_) => Ok(()),
            Err(failure) if self.render.once => Err(failure),
            Err(failure) => {
                self.is_command_due = self.output.due().is_noted();
                eprintln!("tidings: {failure}; what was rendered before stays");
                let now = Instant::now();
                self.due = Some((now + RETRY_PAUSE, now + RETRY_PAUSE));
                Ok(())
            }
        }
    }

    fn begin_command(&mut self) -> Result<(), Failure> {
        self.is_command_due = false;
        let out = self.render.out.to_string_lossy();
        let command = process(&self.render.command, &[("TIDINGS_OUT", &out)]);
        match tokio::process::Command::from(command).kill_on_drop(true).spawn() {
            Ok(child) => self.child = Some(child),
            Err(error) => self.failed(not_started(&self.render.command, &error))?,
        }
        Ok(())
    }

    fn command_ended(&self, status: std::io::Result<std::process::ExitStatus>) -> Result<(), Failure> {
        match status {
            Ok(status) if status.success() => {
                let cleared = self.output.due().clear();
                cleared.or_else(|error| self.failed(Failure::file(&self.render.out, &error)))
            }
            Ok(status) if self.render.once => Err(Failure::status(status)),
            Ok(status) => {
                let error = format!("\"{}\" ended with {status}; the files stay", self.render.command[0]);
                self.failed(Failure::new(Exit::Failed, error))
            }
            Err(error) => self.failed(error.into()),
        }
    }

    /// A command that fails ends nothing but a rendering that is done once.
    fn failed(&self, failure: Failure) -> Result<(), Failure> {
        if self.render.once {
            return Err(failure);
        }
        eprintln!("tidings: {failure}");
        Ok(())
    }

    fn once_done(&self) -> Result<(), Failure> {
        if self.left_out.is_empty() {
            Ok(())
        } else {
            Err(Failure::new(Exit::Failed, "not every key is rendered"))
        }
    }

    async fn stop(mut self) -> Result<(), Failure> {
        if let Some(child) = &mut self.child {
            child.kill().await?;
        }
        Ok(())
    }
}

async fn ended(child: &mut Option<Child>) -> std::io::Result<std::process::ExitStatus> {
    match child {
        Some(child) => child.wait().await,
        None => std::future::pending().await,
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
