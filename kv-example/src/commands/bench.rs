//! `bench`: load through the API, with percentiles.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::client::{Client, Target};
use crate::exit::{Exit, Failure};
use crate::{floor, span, table};

/// More connections than this are no load that one machine makes.
const CONNECTIONS_MAX: u64 = 256;
const REQUESTS_MAX: u64 = 50_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Work {
    /// Reads alone
    Get,
    /// Writes alone
    Put,
    /// Nine reads to one write
    Mixed,
}

/// Put load on a node, and say how long requests take
///
/// The keys are bench/0, bench/1 and so on; they stay unless --clean is given.
#[derive(Args, Debug)]
pub(crate) struct Bench {
    #[arg(value_enum, default_value_t = Work::Mixed)]
    work: Work,
    /// How many requests
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..=REQUESTS_MAX))]
    requests: u64,
    /// Connections at a time, each with one request under way
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=CONNECTIONS_MAX))]
    connections: u64,
    /// How many keys
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// The size of a value
    #[arg(long, default_value_t = 100)]
    value_bytes: usize,
    /// Delete the keys afterwards
    #[arg(long)]
    clean: bool,
    /// Compare reading a key with a bare HTTP handler, in this process, and ask no node
    #[arg(long)]
    floor: bool,
    /// With --floor: compare the evaluation of so many flags by OFREP instead
    #[arg(long, value_name = "COUNT", requires = "floor")]
    flags: Option<usize>,
    #[command(flatten)]
    target: Target,
}

impl Bench {
    pub(super) fn run(&self) -> Result<(), Failure> {
        if self.floor {
            return floor::run(self.value_bytes, self.flags, self.target.json);
        }
        let client = self.target.client()?;
        let value = vec![b'x'; self.value_bytes];
        for key in 0..self.keys {
            client.ask("PUT", &format!("/v1/kv/bench/{key}"), &[], &value)?;
        }
        let template = "{bar:30} {human_pos}/{human_len} requests, {per_sec}, {eta} left";
        let style = ProgressStyle::with_template(template).expect("a constant");
        let bar = ProgressBar::new(self.requests).with_style(style);
        let (next, started) = (AtomicU64::new(0), Instant::now());
        let times = std::thread::scope(|scope| {
            let work = |_| scope.spawn(|| self.work(&client, &next, &value, &bar));
            let workers: Vec<_> = (0..self.connections).map(work).collect();
            let joined = workers.into_iter().map(|worker| worker.join().expect("a worker does not panic"));
            joined.collect::<Result<Vec<_>, Failure>>()
        });
        let (times, took) = (times?, started.elapsed());
        bar.finish_and_clear();
        if self.clean {
            for key in 0..self.keys {
                client.ask("DELETE", &format!("/v1/kv/bench/{key}"), &[], &[])?;
            }
        }
        self.report(times.into_iter().flatten().collect(), took)
    }

    /// One connection's share, and how long each request took.
    fn work(
        &self,
        client: &Client,
        next: &AtomicU64,
        value: &[u8],
        bar: &ProgressBar,
    ) -> Result<Vec<Duration>, Failure> {
        let mut times = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= self.requests {
                return Ok(times);
            }
            let path = format!("/v1/kv/bench/{}", number.wrapping_mul(0x9e37_79b9) % self.keys);
            let is_write = self.work == Work::Put || self.work == Work::Mixed && number.is_multiple_of(10);
            let started = Instant::now();
            if is_write {
                client.ask("PUT", &path, &[], value)?
            } else {
                client.get(&path)?
            };
            times.push(started.elapsed());
            bar.inc(1);
        }
    }

    fn report(&self, mut times: Vec<Duration>, took: Duration) -> Result<(), Failure> {
        times.sort_unstable();
        let Some(last) = times.len().checked_sub(1) else {
            return Err(Failure::new(Exit::Failed, "nothing was measured"));
        };
        let at = |per_mille: usize| times[last * per_mille / 1_000];
        let per_second = times.len() as u128 * 1_000_000 / took.as_micros().max(1);
        let shares = [
            ("median", at(500)),
            ("90 %", at(900)),
            ("99 %", at(990)),
            ("99.9 %", at(999)),
            ("worst", at(1_000)),
        ];
        if self.target.json {
            let us: serde_json::Map<_, _> = shares
                .iter()
                .map(|(name, time)| ((*name).to_owned(), json!(time.as_micros() as u64)))
                .collect();
            let report = json!({ "requests": times.len(), "per_second": per_second as u64, "us": us });
            return Ok(writeln!(std::io::stdout().lock(), "{report}")?);
        }
        println!("{} requests in {}: {per_second} a second", times.len(), span::show(took));
        let (names, cells): (Vec<&str>, Vec<String>) =
            shares.iter().map(|(name, time)| (*name, span::show(*time))).unzip();
        Ok(table::print(&names, &[cells])?)
    }
}
