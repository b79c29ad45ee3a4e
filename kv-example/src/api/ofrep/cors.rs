//! Which pages of other sites may ask for flags.

use std::sync::Arc;
use std::time::Duration;

use axum::http::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, AUTHORIZATION, CONTENT_TYPE, ETAG, IF_NONE_MATCH, ORIGIN, RETRY_AFTER,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use axum::response::Response;
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::super::flag_sets::SELECTOR;
use super::super::guard::API_KEY;

/// How long a browser need not ask again whether it may ask.
const PREFLIGHT_TIME: Duration = Duration::from_secs(3_600);

/// The sites whose pages may ask for flags, each as browsers name it: `https://shop.example`. Without any, only the
/// node's own page may.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origins(Arc<[HeaderValue]>);

impl Origins {
    /// # Errors
    /// The first one that is not of this form.
    pub(crate) fn new(origins: &[String]) -> Result<Self, String> {
        let parsed = origins.iter().map(|origin| {
            let is_origin = origin.parse::<Uri>().is_ok_and(|uri| {
                let (scheme, place) = (uri.scheme_str(), uri.authority().map_or("", |place| place.as_str()));
                let exact = scheme.map(|scheme| format!("{scheme}://{place}"));
                matches!(scheme, Some("http" | "https"))
                    && exact.as_ref() == Some(origin)
                    && !place.contains('@')
            });
            let is_origin = is_origin && *origin == origin.to_ascii_lowercase();
            HeaderValue::from_str(origin).ok().filter(|_| is_origin).ok_or_else(|| origin.clone())
        });
        parsed.collect::<Result<_, _>>().map(Self)
    }

    pub(in crate::api) fn has(&self, headers: &HeaderMap) -> bool {
        headers.get(ORIGIN).is_some_and(|origin| self.0.contains(origin))
    }

    pub(super) fn layer(&self) -> Option<CorsLayer> {
        if self.0.is_empty() {
            return None;
        }
        let asked = [
            CONTENT_TYPE,
            AUTHORIZATION,
            IF_NONE_MATCH,
            HeaderName::from_static(API_KEY),
            HeaderName::from_static(SELECTOR),
        ];
        let layer = CorsLayer::new().allow_origin(AllowOrigin::list(self.0.iter().cloned()));
        let layer = layer.allow_methods([Method::GET, Method::POST]).allow_headers(asked);
        Some(layer.expose_headers([ETAG, RETRY_AFTER]).max_age(PREFLIGHT_TIME))
    }

    /// Has the page see why it was refused, where it may ask.
    pub(in crate::api) fn show(&self, asked: &HeaderMap, mut refusal: Response) -> Response {
        if let Some(origin) = asked.get(ORIGIN).filter(|origin| self.0.contains(origin)) {
            refusal.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        }
        refusal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_those_that_browsers_send() {
        let of = |origin: &str| Origins::new(&[origin.to_owned()]).is_ok();
        for right in
            ["https://shop.example", "http://localhost:3000", "http://127.0.0.1:3000", "https://[::1]:8443"]
        {
            assert!(of(right), "{right}");
        }
        for wrong in [
            "*",
            "null",
            "shop.example",
            "https://shop.example/",
            "https://shop.example/a",
            "ftp://a",
            "https://A.example",
            "https://u@a.example",
            "",
        ] {
            assert!(!of(wrong), "{wrong}");
        }
    }
}
