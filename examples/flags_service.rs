//! A web service with feature flags. It answers from its first moment, also where no other node can be reached: with the
//! flags of its last run, or those that it brings with it. Each request sees one state of all flags. Try
//! `curl http://127.0.0.1:3000/checkout/ann@example.com`.

use std::error::Error;
use std::path::Path;

use axum::Router;
use axum::extract::{Path as PathOf, State};
use axum::routing::get;
use tidings::flags::{Context, Flags, Snapshot};
use tidings::live::LiveState;
use tidings::{Config, Node, Security};

/// What counts where no node of the cluster was ever reached.
const BUNDLED: &str = include_str!("flags/flags.json");

/// Both flags come from one state of the store.
async fn checkout(flags: Snapshot, PathOf(email): PathOf<String>) -> String {
    let context = Context::new(email.as_str()).with("email", email.as_str());
    let greeting = flags.string("greeting", "hello", &context);
    let page = if flags.bool("checkout", false, &context) { "the new checkout" } else { "the old checkout" };
    format!("{greeting}, {email}: {page}\n")
}

/// For whoever watches the service: requests are answered in every one of these states.
async fn state(State(flags): State<Flags>) -> &'static str {
    match flags.state() {
        LiveState::Current => "the flags are those of the cluster\n",
        LiveState::Stale => {
            "no other node was reached yet: the flags are those of the last run, or bundled\n"
        }
        LiveState::Rejected => "a definition is malformed: its last good one is in force\n",
        _ => "the node is closed: the flags do not change any more\n",
    }
}

fn router(flags: Flags) -> Router {
    Router::new().route("/checkout/{email}", get(checkout)).route("/flags", get(state)).with_state(flags)
}

/// Starts a node and its flags. Neither waits for other nodes.
async fn start(
    name: &str,
    seeds: &[String],
    secret: &str,
    kept: &Path,
) -> Result<(Node, Flags), Box<dyn Error>> {
    let node = Node::builder(name).listen("127.0.0.1:0".parse()?).seeds(seeds);
    let node = node.security(Security::secret(secret)?).config(Config::local()).start().await?;
    let flags = Flags::builder(&node, "flags/").last_good(kept).bundled(BUNDLED).start().await?;
    Ok((node, flags))
}

/// Takes the addresses of other nodes. Their secret is in `TIDINGS_SECRET`.
#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let seeds: Vec<String> = std::env::args().skip(1).collect();
    let secret = std::env::var("TIDINGS_SECRET").unwrap_or_else(|_| Security::generate_secret());
    let kept = std::env::temp_dir().join("flags_service.json");
    let (_node, flags) = start("service", &seeds, &secret, &kept).await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    Ok(axum::serve(listener, router(flags)).await?)
}

#[cfg(test)]
#[tokio::test]
async fn service_answers_before_with_and_without_the_cluster() {
    use tidings::flags::FlagsEvent;

    let kept = std::env::temp_dir().join(format!("flags_service-{}.json", std::process::id()));
    let (secret, nobody) = (Security::generate_secret(), ["127.0.0.1:1".to_owned()]);
    let ask = async |flags: &Flags| checkout(flags.snapshot(), PathOf("ann@example.com".to_owned())).await;
    let (node, flags) = start("service", &nobody, &secret, &kept).await.unwrap();
    assert_eq!(flags.state(), LiveState::Stale);
    assert_eq!(ask(&flags).await, "hello, ann@example.com: the new checkout\n", "bundled");

    // A node of the cluster appears, with flags of its own.
    let mut events = flags.events();
    let other =
        Node::builder("other").listen("127.0.0.1:0".parse().unwrap()).seeds([node.addr().to_string()]);
    let other =
        other.security(Security::secret(&secret).unwrap()).config(Config::local()).start().await.unwrap();
    let greeting = r#"{"state": "ENABLED", "variants": {"plain": "good day"}, "defaultVariant": "plain"}"#;
    other.put("flags/default/greeting", greeting).unwrap();
    while events.next().await.expect("the node is open") != FlagsEvent::Ready {}
    while !ask(&flags).await.starts_with("good day") {
        events.next().await.expect("the node is open");
    }
    assert_eq!(ask(&flags).await, "good day, ann@example.com: the old checkout\n", "only greeting is there");

    // The next start reaches nobody again, and has the flags of this run.
    let is_kept = async {
        while !std::fs::read_to_string(&kept).is_ok_and(|text| text.contains("good day")) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), is_kept).await.expect("they are kept");
    node.shutdown().await;
    other.shutdown().await;
    let (node, flags) = start("service", &nobody, &secret, &kept).await.unwrap();
    assert_eq!(flags.state(), LiveState::Stale);
    assert!(ask(&flags).await.starts_with("good day"), "kept");
    node.shutdown().await;
    std::fs::remove_file(kept).unwrap();
}
