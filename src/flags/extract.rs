//! The flags of one request, as an extractor of `axum`.

use std::convert::Infallible;

use axum_core::extract::{FromRef, FromRequestParts};
use http::request::Parts;

use super::{Flags, Snapshot};

/// All extractors of one request give the same snapshot. A [`Flags`] has to be the state of the router or a part of it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use tidings::{Node, Security};
/// # let security = Security::secret(&Security::generate_secret())?;
/// # let node = Node::builder("a").security(security).start().await?;
/// use axum::Router;
/// use axum::routing::get;
/// use tidings::flags::{Context, Flags, Snapshot};
///
/// async fn page(flags: Snapshot) -> &'static str {
///     if flags.bool("new-page", false, &Context::anonymous()) { "new" } else { "old" }
/// }
///
/// let router: Router = Router::new().route("/", get(page)).with_state(Flags::new(&node, "flags/"));
/// # Ok(()) }
/// ```
impl<S: Send + Sync> FromRequestParts<S> for Snapshot
where
    Flags<crate::Node>: FromRef<S>,
{
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let make = || Flags::from_ref(state).snapshot();
        Ok(parts.extensions.get_or_insert_with(make).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Context;
    use super::*;
    use crate::{Node, Security};

    const ON: &str = r#"{"state": "ENABLED", "variants": {"on": true}, "defaultVariant": "on"}"#;

    #[tokio::test]
    async fn one_request_sees_one_snapshot() {
        let security = Security::secret(&Security::generate_secret()).unwrap();
        let node = Node::builder("a").security(security).start().await.unwrap();
        let flags = Flags::new(&node, "flags/");
        let parts = || http::Request::new(()).into_parts().0;
        let (mut first, mut second) = (parts(), parts());
        let is_on = |snapshot: &Snapshot| snapshot.bool("f", false, &Context::anonymous());
        let before = Snapshot::from_request_parts(&mut first, &flags).await.unwrap();
        node.put("flags/default/f", ON).unwrap();
        let mut events = flags.events();
        while !flags.bool("f", false, &Context::anonymous()) {
            events.next().await.expect("the node lives");
        }
        let again = Snapshot::from_request_parts(&mut first, &flags).await.unwrap();
        let later = Snapshot::from_request_parts(&mut second, &flags).await.unwrap();
        assert_eq!([is_on(&before), is_on(&again), is_on(&later)], [false, false, true]);
    }
}
