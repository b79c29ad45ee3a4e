//! What the system tells the process.

#[cfg(unix)]
mod system {
    use tokio::signal::unix::{Signal, SignalKind, signal};

    /// Ctrl-C, or the system's wish that the process ends.
    #[derive(Debug)]
    pub(crate) struct End(Signal, Signal);

    impl End {
        pub(crate) fn new() -> std::io::Result<Self> {
            Ok(Self(signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?))
        }

        pub(crate) async fn recv(&mut self) {
            tokio::select! {
                _ = self.0.recv() => {}
                _ = self.1.recv() => {}
            }
        }
    }

    /// SIGHUP: read the secrets again.
    #[derive(Debug)]
    pub(crate) struct Reload(Signal);

    impl Reload {
        pub(crate) fn new() -> std::io::Result<Self> {
            Ok(Self(signal(SignalKind::hangup())?))
        }

        pub(crate) async fn recv(&mut self) {
            self.0.recv().await;
        }
    }
}

#[cfg(not(unix))]
mod system {
    /// Ctrl-C.
    #[derive(Debug)]
    pub(crate) struct End;

    impl End {
        #[expect(clippy::unnecessary_wraps, reason = "the same call as on other systems")]
        pub(crate) fn new() -> std::io::Result<Self> {
            Ok(Self)
        }

        pub(crate) async fn recv(&mut self) {
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// There is no such signal here: files that were replaced are found by looking.
    #[derive(Debug)]
    pub(crate) struct Reload;

    impl Reload {
        #[expect(clippy::unnecessary_wraps, reason = "the same call as on other systems")]
        pub(crate) fn new() -> std::io::Result<Self> {
            Ok(Self)
        }

        pub(crate) async fn recv(&mut self) {
            std::future::pending::<()>().await;
        }
    }
}

pub(crate) use system::{End, Reload};
