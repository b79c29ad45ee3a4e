//! A web service whose settings are in the store: a request sees one state of them, any node may change them. Try
//! `curl http://127.0.0.1:3000/greet/you`.

use std::error::Error;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, put};
use tidings::live::Values;
use tidings::{Config, Live, Node, Security};

#[derive(serde::Deserialize)]
struct Settings {
    greeting: String,
}

#[derive(Clone)]
struct App {
    node: Node,
    settings: Live<Settings>,
}

async fn greet(State(app): State<App>, Path(name): Path<String>) -> String {
    format!("{}, {name}", app.settings.load().greeting)
}

/// Every node of the service greets like this within milliseconds.
async fn set_greeting(State(app): State<App>, greeting: String) -> Result<(), (StatusCode, String)> {
    let greeting = serde_json::json!(greeting).to_string();
    let written = app.node.put("app/greeting", greeting).map(drop);
    written.map_err(|error| (StatusCode::SERVICE_UNAVAILABLE, error.to_string()))
}

async fn app() -> Result<App, Box<dyn Error>> {
    let security = Security::secret(&Security::generate_secret())?;
    let node = Node::builder("a").security(security).config(Config::local()).start().await?;
    let defaults = Values::new("defaults", serde_json::json!({ "greeting": "hello" }));
    let settings = Live::builder(&node, "app/").under(defaults).start().await?;
    Ok(App { node, settings })
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    let app = app().await?;
    let router = axum::Router::new().route("/greet/{name}", get(greet)).route("/greeting", put(set_greeting));
    Ok(axum::serve(listener, router.with_state(app)).await?)
}

#[cfg(test)]
#[tokio::test]
async fn request_sees_what_was_set_before() {
    let mut app = app().await.unwrap();
    assert_eq!(greet(State(app.clone()), Path("you".to_owned())).await, "hello, you");
    set_greeting(State(app.clone()), "good day".to_owned()).await.unwrap();
    app.settings.changed().await.expect("the node is open");
    assert_eq!(greet(State(app), Path("you".to_owned())).await, "good day, you");
}
