//! Shared secrets: how strong a text is, and the certificate authority that a secret becomes.
//!
//! A secret has to be strong, because anybody who sees a certificate that was issued under it can test guesses offline,
//! on machines of its own. Two things make that hopeless: the number of guesses, which [`strength`] estimates, and the
//! cost of each, which is that of [`Authority::of`].
//!
//! The authority's certificate contains nothing that differs from node to node, so that all nodes compute the same one.
//! The text of a secret and the key derived from it must never be shown, and are erased when they are dropped.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::error::{Cause, SecurityError};

/// A secret has to be worth so many bits, as [`strength`] estimates them.
pub(in crate::node) const SECRET_BITS_MIN: u32 = 80;

/// Argon2id with 64 MiB, three passes and four lanes: the second recommendation of RFC 9106, above what OWASP asks for
/// at least (19 MiB and two passes). A node derives a key once for each secret, so it can take some tenths of a second.
const DERIVATION: (u32, u32, u32) = (64 << 10, 3, 4);
/// In front of the cluster's name. The salt makes a guess count for one cluster alone.
const DERIVATION_SALT: &str = "tidings/2 shared secret of cluster ";
/// The bytes of PKCS #8 in front of the 32 bytes of an Ed25519 key.
const PKCS8_ED25519: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// Tenths of a bit for a part of a text, see [`strength`].
const LETTER: u32 = 47;
const DIGIT: u32 = 33;
const SIGN: u32 = 40;
const SAME_SIGN: u32 = 10;
const WORD: u32 = 70;
const WORD_LETTER: u32 = 10;
const REPETITION: u32 = 60;
/// So many characters that stand earlier in the text as well are a repetition.
const REPETITION_CHARS_MIN: usize = 4;
/// Characters that are looked at; what stands behind them adds nothing.
const STRENGTH_CHARS_MAX: usize = 256;

/// A low estimate of a text's entropy in bits, for an attacker who guesses words rather than characters. It adds up:
///
/// * letters of one case in a row, of which the first may be a capital: 4.7 bits each, or 7 bits and 1 bit for each
///   letter, as for a word, if that is less;
/// * a digit: 3.3 bits; another character: 4 bits, or 1 bit if the previous such character was the same;
/// * four or more characters that stand earlier in the text: 6 bits for all of them.
///
/// A word of five letters drawn from a list of 4,096 has 12 bits. Random texts have more than the estimate says, and
/// what people make up has less, which [`SECRET_BITS_MIN`] allows for.
fn strength(text: &str) -> u32 {
    let chars: Vec<char> = text.chars().take(STRENGTH_CHARS_MAX).collect();
    let (mut tenths, mut at, mut sign) = (0, 0, None);
    while let Some(&first) = chars.get(at) {
        let repeated = repetition(&chars, at);
        if repeated >= REPETITION_CHARS_MIN {
            tenths += REPETITION;
            at += repeated;
        } else if first.is_alphabetic() {
            let letters = word(&chars[at..]);
            tenths += (LETTER * letters as u32).min(WORD + WORD_LETTER * letters as u32);
            at += letters;
        } else {
            let is_same = sign.replace(first) == Some(first);
            tenths += match (first.is_numeric(), is_same) {
                (true, _) => DIGIT,
                (false, true) => SAME_SIGN,
                (false, false) => SIGN,
            };
            at += 1;
        }
    }
    tenths / 10
}

/// The letters of the word that begins here.
fn word(chars: &[char]) -> usize {
    let goes_on =
        |pair: &&[char]| pair[1].is_alphabetic() && (pair[0].is_uppercase() == pair[1].is_uppercase());
    let has_capital = chars[0].is_uppercase() && chars.get(1).is_some_and(|c| c.is_lowercase());
    let first = 1 + usize::from(has_capital);
    first + chars[first - 1..].windows(2).take_while(goes_on).count()
}

/// How many characters from here on also stand from some earlier place on.
fn repetition(chars: &[char], at: usize) -> usize {
    let same = |from: usize| {
        chars[from..].iter().zip(&chars[at..]).take_while(|(a, b)| a.eq_ignore_ascii_case(b)).count()
    };
    (0..at).map(same).max().unwrap_or_default()
}

fn check(text: &str) -> Result<(), SecurityError> {
    if text.trim() != text {
        return Err(SecurityError::Blank);
    }
    let bits = strength(text);
    if bits < SECRET_BITS_MIN { Err(SecurityError::Weak { bits, bits_min: SECRET_BITS_MIN }) } else { Ok(()) }
}

/// A new secret of 160 random bits.
pub(super) fn generate() -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    loop {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).expect("the system gives randomness");
        let letters: Vec<char> = bytes.iter().map(|byte| LETTERS[usize::from(*byte % 32)].into()).collect();
        let groups: Vec<String> = letters.chunks(4).map(|group| group.iter().collect()).collect();
        let secret = groups.join("-");
        if check(&secret).is_ok() {
            return secret;
        }
    }
}

/// A secret that is strong, with the authorities that it is in the clusters where it was used.
pub(super) struct Secret {
    text: Zeroizing<String>,
    authorities: Mutex<BTreeMap<String, Arc<Authority>>>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").finish_non_exhaustive()
    }
}

impl Secret {
    pub(super) fn new(text: &str) -> Result<Self, SecurityError> {
        check(text)?;
        Ok(Self { text: text.to_owned().into(), authorities: Mutex::default() })
    }

    pub(super) fn is(&self, text: &str) -> bool {
        *self.text == text
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.is(&other.text)
    }

    /// The authority that it is in a cluster. The first call for a cluster takes some tenths of a second.
    pub(super) fn authority(&self, cluster: &str) -> Result<Arc<Authority>, SecurityError> {
        let mut authorities = self.authorities.lock().expect("nothing panics while it changes");
        if let Some(authority) = authorities.get(cluster) {
            return Ok(authority.clone());
        }
        let authority = Arc::new(Authority::of(&self.text, cluster)?);
        authorities.insert(cluster.to_owned(), authority.clone());
        Ok(authority)
    }
}

/// The certificate authority that is derived from a secret.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(super) certificate: CertificateDer<'static>,
}

impl Authority {
    fn of(text: &str, cluster: &str) -> Result<Self, SecurityError> {
        let (memory, passes, lanes) = DERIVATION;
        let parameters = argon2::Params::new(memory, passes, lanes, Some(32)).expect("they are permitted");
        let argon = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, parameters);
        let mut key = Zeroizing::new([0; 48]);
        key[..16].copy_from_slice(&PKCS8_ED25519);
        let salt = format!("{DERIVATION_SALT}{cluster}");
        argon
            .hash_password_into(text.as_bytes(), salt.as_bytes(), &mut key[16..])
            .map_err(|error| SecurityError::Crypto { reason: Cause::new(error) })?;
        let crypto = |error: rcgen::Error| SecurityError::Crypto { reason: Cause::new(error) };
        let der = PrivatePkcs8KeyDer::from(&key[..]);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519).map_err(crypto)?;
        let print: Vec<String> = key.public_key_raw().iter().map(|byte| format!("{byte:02x}")).collect();
        let mut parameters = CertificateParams::default();
        // All nodes must compute the same certificate, so nothing in it may depend on the node or the time.
        parameters.serial_number = Some(rcgen::SerialNumber::from(1_u64));
        parameters.not_before = rcgen::date_time_ymd(2000, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(4000, 1, 1);
        parameters.distinguished_name = DistinguishedName::new();
        parameters.distinguished_name.push(DnType::CommonName, format!("tidings secret {}", print.concat()));
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let certificate = parameters.self_signed(&key).map_err(crypto)?.into();
        Ok(Self { issuer: Issuer::new(parameters, key), certificate })
    }

    /// Issues a certificate in a node's name, with a new key.
    pub(super) fn issue(
        &self,
        node: &str,
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), rcgen::Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
        let mut parameters = CertificateParams::new(vec![node.to_owned()])?;
        parameters.distinguished_name = DistinguishedName::new();
        parameters.distinguished_name.push(DnType::CommonName, node);
        parameters.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = parameters.signed_by(&key, &self.issuer)?;
        Ok((certificate.into(), PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guessable_texts_are_weak() {
        for text in [
            "",
            "hunter2",
            "correct horse battery staple",
            "Tr0ub4dor&3",
            "a secret for examples, 16 bytes",
            "passwordpasswordpasswordpassword",
            "111111111111111111111111111111111111",
            "aB3$aB3$aB3$aB3$aB3$aB3$aB3$aB3$",
            "abcdefghijklmnopqrstuvwxyz0123456789",
            "qwertyuiopasdfghjklzxcvbnm1234567890",
        ] {
            assert!(strength(text) < SECRET_BITS_MIN, "{text}: {}", strength(text));
        }
        // As SECURITY.md says.
        assert_eq!(strength("correct horse battery staple"), 59);
    }

    #[test]
    fn random_texts_are_strong() {
        for text in [
            "9f86d081884c7d659a2feaa0c55ad015", // 128 bits, hexadecimal
            "kJ8vQ2xZp0LmR7sTnB4wYc",           // 128 bits, base 64
            "cobalt-walnut-ferry-oxygen-plural-tundra-mosaic-ivory", // eight words
        ] {
            assert!(strength(text) >= SECRET_BITS_MIN, "{text}: {}", strength(text));
        }
        (0..1_000).for_each(|_| assert!(check(&generate()).is_ok()));
    }

    #[test]
    fn one_secret_has_another_key_in_each_cluster() {
        let secret = Secret::new(&generate()).unwrap();
        let of = |cluster| secret.authority(cluster).unwrap().certificate.clone();
        assert_eq!(of("a"), Secret::new(&secret.text).unwrap().authority("a").unwrap().certificate);
        assert_ne!(of("a"), of("b"));
        assert_eq!(format!("{secret:?}"), "Secret { .. }");
    }
}
