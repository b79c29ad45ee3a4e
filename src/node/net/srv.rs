//! Seeds that are named by SRV records of the DNS: which hosts and ports a service has.
//!
//! Nothing is cached here: every attempt asks again, so that a service whose records change is found.

use std::net::SocketAddr;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;

/// Hosts of one service that are used; those with the lowest priority number come first.
const SRV_HOSTS_MAX: usize = 64;

/// The servers that are asked for SRV records. None: those of the system.
#[derive(Clone, Debug, Default)]
pub(in crate::node) struct NameServers(Vec<SocketAddr>);

impl NameServers {
    pub(in crate::node) fn add(&mut self, servers: impl IntoIterator<Item = SocketAddr>) {
        self.0.extend(servers);
    }

    fn resolver(&self) -> Result<TokioResolver, String> {
        let mut builder = if self.0.is_empty() {
            TokioResolver::builder_tokio().map_err(|error| error.to_string())?
        } else {
            let servers = self.0.iter().map(|server| {
                let mut connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
                connections.iter_mut().for_each(|connection| connection.port = server.port());
                NameServerConfig::new(server.ip(), true, connections.to_vec())
            });
            let config = ResolverConfig::from_name_servers(servers.collect());
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        builder.options_mut().cache_size = 0;
        builder.build().map_err(|error| error.to_string())
    }

    /// All addresses of a service. Hosts that cannot be resolved are left out, unless all of them are.
    pub(in crate::node) async fn resolve(&self, service: &str) -> Result<Vec<SocketAddr>, String> {
        let resolver = self.resolver()?;
        let found = resolver.srv_lookup(service).await.map_err(|error| error.to_string())?;
        let records = found.answers().iter().filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(srv.clone()),
            _ => None,
        });
        let mut records: Vec<_> = records.collect();
        records.sort_by_key(|srv| srv.priority);
        let (mut addrs, mut failed) = (Vec::new(), None);
        for srv in records.into_iter().take(SRV_HOSTS_MAX) {
            match resolver.lookup_ip(srv.target.clone()).await {
                Ok(ips) => addrs.extend(ips.iter().map(|ip| SocketAddr::new(ip, srv.port))),
                Err(error) => failed = Some(error.to_string()),
            }
        }
        match failed {
            Some(error) if addrs.is_empty() => Err(error),
            _ => Ok(addrs),
        }
    }
}
