//! Sets of flags for programs that evaluate them themselves: flagd's service `flagd.sync.v1`, over gRPC on a port of its
//! own. flagd's providers call it in their in-process mode.
//!
//! A message is a whole set as it was at one instant. A malformed definition is never in it; the last good one is, if
//! this node has seen one. A stream has no queue: when the client has taken a message, the next one is made of what the
//! set is then, so that a slow client misses steps and never the last one.
//!
//! Connections, TLS and tokens are those of the HTTP API (`listen`, `guard`): a token is metadata called `authorization`.

use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use futures_util::stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use super::flag_sets::{self, SetState};
use super::{App, metrics};
use proto::flag_sync_service_server::{FlagSyncService, FlagSyncServiceServer};
use proto::{
    FetchAllFlagsRequest, FetchAllFlagsResponse, GetMetadataRequest, GetMetadataResponse, SyncFlagsRequest,
    SyncFlagsResponse,
};

/// Generated; a test below says how.
#[allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub, unused_qualifications)]
mod proto {
    include!("flagd/flagd.sync.v1.rs");
}

/// Below it are the methods of the service.
pub(super) const PATH: &str = "/flagd.sync.v1.FlagSyncService/";
/// The size of a question.
const QUESTION_BYTES_MAX: usize = 64 << 10;

/// The routes of the service.
pub(crate) fn routes(app: Arc<App>) -> Router {
    let service = FlagSyncServiceServer::new(FlagSync(app.clone()));
    let service = service.max_decoding_message_size(QUESTION_BYTES_MAX);
    let routes = tonic::service::Routes::new(service).into_axum_router();
    routes.layer(axum::middleware::from_fn_with_state(app, metrics::measure))
}

struct FlagSync(Arc<App>);

/// The set that a question is about: the metadata's, or that of the question itself.
fn set_of<T>(request: &Request<T>, selector: &str) -> Result<String, Status> {
    let headers = request.metadata().clone().into_headers();
    flag_sets::asked(&headers, Some(selector)).map(str::to_owned).map_err(Status::invalid_argument)
}

#[tonic::async_trait]
impl FlagSyncService for FlagSync {
    type SyncFlagsStream = Pin<Box<dyn Stream<Item = Result<SyncFlagsResponse, Status>> + Send>>;

    async fn sync_flags(
        &self,
        request: Request<SyncFlagsRequest>,
    ) -> Result<Response<Self::SyncFlagsStream>, Status> {
        let app = self.0.clone();
        let set = set_of(&request, &request.get_ref().selector)?;
        let permit = app.watcher().map_err(|error| Status::resource_exhausted(error.text()))?;
        let states = flag_sets::followed(app, set, None, |state| &state.file_digest, permit);
        let message = |state: Arc<SetState>| {
            let flag_configuration = state.file.to_string();
            Ok(SyncFlagsResponse { flag_configuration, sync_context: None })
        };
        Ok(Response::new(Box::pin(states.map(message))))
    }

    async fn fetch_all_flags(
        &self,
        request: Request<FetchAllFlagsRequest>,
    ) -> Result<Response<FetchAllFlagsResponse>, Status> {
        let set = set_of(&request, &request.get_ref().selector)?;
        let state = self.0.set_state(&set).await;
        if flag_sets::is_unknown(&self.0, &state) {
            return Err(Status::unavailable("this node has not caught up with its cluster"));
        }
        Ok(Response::new(FetchAllFlagsResponse { flag_configuration: state.file.to_string() }))
    }

    async fn get_metadata(
        &self,
        _: Request<GetMetadataRequest>,
    ) -> Result<Response<GetMetadataResponse>, Status> {
        // Nothing is to be added to contexts, and there are clients that cannot do without the field.
        Ok(Response::new(GetMetadataResponse { metadata: Some(prost_types::Struct::default()) }))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// The generated code is that of the `.proto` file. With `TIDINGS_GENERATE` set it is written anew.
    #[test]
    fn generated_code_is_that_of_the_proto_file() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = std::env::temp_dir().join(format!("tidings-proto-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let files = protox::compile(["flagd/sync/v1/sync.proto"], [root.join("proto")]).unwrap();
        let builder = tonic_prost_build::configure().build_client(false).build_transport(false);
        builder.out_dir(&folder).compile_fds(files).unwrap();
        let generated = std::fs::read_to_string(folder.join("flagd.sync.v1.rs")).unwrap();
        std::fs::remove_dir_all(folder).unwrap();
        let kept = root.join("src/api/flagd/flagd.sync.v1.rs");
        if std::env::var_os("TIDINGS_GENERATE").is_some() {
            std::fs::write(&kept, &generated).unwrap();
        }
        assert!(
            std::fs::read_to_string(kept).unwrap() == generated,
            "run `TIDINGS_GENERATE=1 cargo test -p kv-example generated_code`"
        );
    }
}
