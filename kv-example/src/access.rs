//! Who may connect to the node and to its API, as the files with secrets, tokens and certificates say. They are read at
//! the start, again on SIGHUP, and when they were replaced, each kind by itself: where one cannot be used, that is said,
//! and what was in force stays so.

use std::sync::Arc;

use tidings::{Security, SecurityError};

use crate::api::{Guard, Tls};
use crate::exit::Failure;
use crate::replaced::Replaced;
use crate::settings::Settings;

/// What is in force.
pub(crate) struct Access {
    settings: Settings,
    pub(crate) security: Security,
    /// The secrets of the cluster that are accepted; none where certificates come from files.
    accepted: Vec<String>,
    files: Replaced,
    pub(crate) guard: Guard,
    pub(crate) tls: Option<Arc<Tls>>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").finish_non_exhaustive()
    }
}

impl Access {
    pub(crate) fn new(settings: &Settings) -> Result<Self, Failure> {
        let files = Replaced::new(settings.access_files());
        let guard = Guard::new(settings.tokens()?, settings.ofrep_origins()?);
        let tls = settings.http_files()?.map(|[certificate, key]| Tls::read(certificate, key)).transpose()?;
        let (security, accepted) = if let Some([ca, certificate, key]) = settings.cluster_files()? {
            (Security::ca(ca, certificate, key)?, Vec::new())
        } else {
            let secrets = settings.secrets()?;
            let security = Security::secret(&secrets[0])?;
            secrets[1..].iter().try_for_each(|secret| security.accept(secret))?;
            (security, secrets)
        };
        if let Some(lists) = &settings.cluster_revocation_file {
            security.revoke_by(lists)?;
        }
        if let Some(names) = settings.cluster_names()? {
            security.allow_only(names)?;
        }
        Ok(Self { settings: settings.clone(), security, accepted, files, guard, tls: tls.map(Arc::new) })
    }

    /// Reads everything again if a file was replaced. Called now and then.
    pub(crate) fn follow_files(&mut self) {
        if self.files.is_due() {
            self.reload();
        }
    }

    /// Reads everything again.
    pub(crate) fn reload(&mut self) {
        self.files.note_read();
        if self.accepted.is_empty() {
            self.reload_certificates();
        } else {
            rotate(&self.settings, &self.security, &mut self.accepted);
        }
        match self.settings.tokens() {
            Ok(tokens) => self.guard.replace(tokens),
            Err(failure) => eprintln!("tidings: the tokens stay as they are: {failure}"),
        }
        if let Some(Err(failure)) = self.tls.as_ref().map(|tls| tls.reload()) {
            eprintln!("tidings: the certificate of the API stays as it is: {failure}");
        }
    }

    fn reload_certificates(&self) {
        if let Err(error) = self.security.reload() {
            return eprintln!("tidings: the certificates of the cluster stay as they are: {error}");
        }
        match self.settings.cluster_names() {
            Ok(None) => {}
            Ok(Some(names)) => {
                if let Err(error) = self.security.allow_only(names) {
                    return eprintln!("tidings: the permitted names stay as they are: {error}");
                }
            }
            Err(failure) => return eprintln!("tidings: the permitted names stay as they are: {failure}"),
        }
        eprintln!("tidings: read the certificates of the cluster again");
    }
}

/// Follows the secret file: what is new in it is accepted, its first line is presented, what is gone from it is
/// refused. If one of them cannot be used, that is logged, and what was in force stays so.
fn rotate(settings: &Settings, security: &Security, accepted: &mut Vec<String>) {
    let secrets = match settings.secrets() {
        Ok(secrets) => secrets,
        Err(failure) => return eprintln!("tidings: the secrets stay as they are: {failure}"),
    };
    let not_used = |at: usize, error: SecurityError| {
        eprintln!(
            "tidings: the secrets stay as they are: the one in line {} cannot be used: {error}",
            at + 1
        );
    };
    for (at, secret) in secrets.iter().enumerate() {
        if let Err(error) = Security::secret(secret) {
            return not_used(at, error);
        }
    }
    for (at, secret) in secrets.iter().enumerate() {
        let done = if at == 0 { security.present(secret) } else { security.accept(secret) };
        if let Err(error) = done {
            return not_used(at, error);
        }
        if !accepted.contains(secret) {
            accepted.push(secret.clone());
        }
    }
    accepted.retain(|old| {
        let is_removed = !secrets.contains(old) && security.remove(old).is_ok();
        !is_removed
    });
    let accepted = accepted.len();
    eprintln!("tidings: read the secrets again: {accepted} accepted, the first is used");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_secrets_follow_the_file_or_stay_unchanged() {
        let folder = std::env::temp_dir().join(format!("tidings-rotate-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("secrets");
        let settings = Settings { secret_file: Some(file.clone()), ..Settings::default() };
        let secrets = [(); 3].map(|()| Security::generate_secret());
        let [old, new, last] = secrets.each_ref().map(String::as_str);
        let (security, mut accepted) = (Security::secret(old).unwrap(), vec![old.to_owned()]);
        let mut read = |lines: &[&str]| {
            std::fs::write(&file, lines.join("\n")).unwrap();
            #[cfg(unix)]
            {
                let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
                std::fs::set_permissions(&file, private).unwrap();
            }
            rotate(&settings, &security, &mut accepted);
            accepted.clone()
        };
        assert_eq!(read(&[new, "short"]), [old]);
        assert_eq!(security.remove(new), Err(SecurityError::NotAccepted));
        assert_eq!(security.remove(old), Err(SecurityError::InUse));
        assert_eq!(read(&[new, old]), [old, new]);
        assert_eq!(read(&[last]), [last]);
        for gone in [old, new] {
            assert_eq!(security.remove(gone), Err(SecurityError::NotAccepted));
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
