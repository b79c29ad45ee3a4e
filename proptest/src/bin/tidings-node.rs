//! One node in a process of its own, for tests that kill, stop and cut off processes.
//!
//! `tidings-node NAME LISTEN SECRET [SEED ..]` writes lines to its output: `addr ADDR` after the start, one line per
//! member event, and the answers to commands. It reads `put KEY VALUE`, `get KEY`, `fill COUNT BYTES`, `len`, `leave`,
//! `living` and `campaign NAME` from its input. It ends when its input is closed, so that no test leaves a process
//! behind. `TIDINGS_VOTERS` holds the names of the voters, separated by commas.

use std::io::Write;

use tidings::{Config, MemberEvent, Node, Security};
use tokio::io::{AsyncBufReadExt, BufReader};

type Failed = Box<dyn std::error::Error>;

fn tell(line: &str) {
    let mut out = std::io::stdout().lock();
    // If the reader is gone, the input is closed soon, which ends the process.
    _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failed> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, listen, secret, seeds @ ..] = &arguments[..] else {
        return Err("usage: tidings-node NAME LISTEN SECRET [SEED ..]".into());
    };
    let node = Node::builder(name).listen(listen.parse()?).seeds(seeds.to_vec());
    let mut config = Config::lan();
    let voters = std::env::var("TIDINGS_VOTERS").unwrap_or_default();
    config.voters = voters.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    let node = node.security(Security::secret(secret)?).config(config).start().await?;
    tell(&format!("addr {}", node.addr()));
    let mut events = node.member_events();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(MemberEvent::Joined(member)) => tell(&format!("joined {}", member.name)),
                Some(MemberEvent::Down(member)) => tell(&format!("down {}", member.name)),
                Some(MemberEvent::Left(member)) => tell(&format!("left {}", member.name)),
                Some(MemberEvent::Suspect(member)) => tell(&format!("suspect {}", member.name)),
                Some(MemberEvent::Recovered(member)) => tell(&format!("recovered {}", member.name)),
                Some(_) => {}
                None => return Ok(()),
            },
            line = lines.next_line() => {
                let Some(line) = line? else { return Ok(()) };
                obey(&node, &line).await?;
            }
        }
    }
}

async fn obey(node: &Node, line: &str) -> Result<(), Failed> {
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["put", key, value] => _ = node.put(key, value)?,
        ["get", key] => {
            let value = node.get(key).map(|entry| String::from_utf8_lossy(entry.value()).into_owned());
            tell(&format!("value {}", value.unwrap_or_default()));
        }
        ["fill", count, bytes] => {
            let (count, value) = (count.parse::<usize>()?, vec![b'x'; bytes.parse()?]);
            let mut refused = 0;
            for i in 0..count {
                while node.put(format!("fill/{i}"), &value).is_err() {
                    refused += 1;
                    node.writable().await?;
                }
                // Commands are read and probes are answered in between.
                tokio::task::yield_now().await;
            }
            tell(&format!("filled {count} refused {refused}"));
        }
        ["len"] => tell(&format!("len {}", node.len())),
        ["living"] => {
            let living = node.members().into_iter().filter(|member| member.state.is_alive());
            tell(&format!("living {}", living.count()));
        }
        ["campaign", name] => {
            let election = node.election(name);
            tokio::spawn(async move {
                while let Ok(lead) = election.campaign("").await {
                    tell(&format!("elected {}", lead.token()));
                    lead.lost().await;
                    tell(&format!("lost {}", lead.token()));
                }
            });
        }
        ["leave"] => node.shutdown().await,
        _ => return Err(format!("unknown command {line:?}").into()),
    }
    Ok(())
}
