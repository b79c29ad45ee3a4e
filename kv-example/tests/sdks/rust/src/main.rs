//! Asks nodes for a flag through the crate `open-feature-ofrep`: TOKEN FLAG USER URL... One line of JSON for each node.

use std::time::Duration;

use open_feature::provider::FeatureProvider;
use open_feature::{EvaluationContext, EvaluationErrorCode};
use open_feature_ofrep::{OfrepOptions, OfrepProvider};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [token, flag, user, urls @ ..] = words.as_slice() else { panic!("TOKEN FLAG USER URL...") };
    let bearer = HeaderValue::from_str(&format!("Bearer {token}")).expect("a token is a header");
    for url in urls {
        let provider = OfrepProvider::new(OfrepOptions {
            base_url: url.clone(),
            headers: HeaderMap::from_iter([(AUTHORIZATION, bearer.clone())]),
            connect_timeout: Duration::from_secs(10),
            ..OfrepOptions::default()
        });
        let provider = provider.await.expect("it takes the address");
        let context = EvaluationContext::default().with_targeting_key(user);
        let told = match provider.resolve_string_value(flag, &context).await {
            Ok(told) => serde_json::json!([told.value, told.variant]),
            Err(error) => serde_json::json!([null, code(&error.code)]),
        };
        println!("{told}");
    }
}

fn code(code: &EvaluationErrorCode) -> String {
    match code {
        EvaluationErrorCode::General(_) => "GENERAL".to_owned(),
        other => other.to_string(),
    }
}
