//! The dashboard's page: one answer, put together from the files in `src/dashboard`, that needs nothing from anywhere
//! else.

use std::sync::LazyLock;

use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY};
use axum::response::{Html, IntoResponse};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

const STYLE: &str = include_str!("../dashboard/style.css");
/// One script, in which each part uses what stands before it; what runs at once is at the ends of the parts.
const SCRIPT: &str = concat!(
    "\"use strict\";\n",
    include_str!("../dashboard/base.js"),
    include_str!("../dashboard/stream.js"),
    include_str!("../dashboard/cluster.js"),
    include_str!("../dashboard/voters.js"),
    include_str!("../dashboard/settings.js"),
    include_str!("../dashboard/map.js"),
    include_str!("../dashboard/tree.js"),
    include_str!("../dashboard/keys.js"),
    include_str!("../dashboard/value.js"),
    include_str!("../dashboard/entry.js"),
    include_str!("../dashboard/editor.js"),
    include_str!("../dashboard/flags.js"),
    include_str!("../dashboard/flag.js"),
    include_str!("../dashboard/plan.js"),
    include_str!("../dashboard/trial.js"),
    include_str!("../dashboard/plots.js"),
    include_str!("../dashboard/start.js"),
);

static PAGE: LazyLock<String> = LazyLock::new(|| {
    let page = include_str!("../dashboard/page.html");
    page.replace("{style}", STYLE).replace("{script}", SCRIPT)
});

/// The script and the style are named by their hashes, so that nothing else runs that a value may have smuggled in.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash =
        |text: &str| BASE64_STANDARD.encode(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT)
    )
});

pub(super) async fn page() -> impl IntoResponse {
    let headers = [
        (CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_TYPE, "text/html; charset=utf-8"),
    ];
    (headers, Html(PAGE.as_str()))
}
