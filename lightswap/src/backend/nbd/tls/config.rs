//! Whom a session trusts, and what it shows of itself. Certificates are read whenever a connection is made, so that they can be renewed while programs run.

use super::options::TlsOptions;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme, version};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const AUTHORITY: &str = "ca-cert.pem";
const CERTIFICATE: &str = "client-cert.pem";
const KEY: &str = "client-key.pem";

/// An error is what is wrong, and what to do.
pub(super) fn load(options: &TlsOptions) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone());
    let builder = builder.with_protocol_versions(&[&version::TLS13]).expect("the provider knows that version");
    let builder = if options.is_unverified {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
    } else {
        builder.with_root_certificates(load_authorities(options.certificates.as_deref())?)
    };
    let mut config = match load_own(options.certificates.as_deref())? {
        Some((chain, key, path)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|cause| format!("the certificate and key {} cannot be used: {cause}", path.display()))?,
        None => builder.with_no_client_auth(),
    };
    // A session that is resumed has not verified its server.
    config.resumption = Resumption::disabled();
    config.enable_secret_extraction = true;
    Ok(config)
}

fn load_authorities(directory: Option<&Path>) -> Result<RootCertStore, String> {
    let mut authorities = RootCertStore::empty();
    let Some(directory) = directory else {
        let found = rustls_native_certs::load_native_certs();
        authorities.add_parsable_certificates(found.certs);
        if authorities.is_empty() {
            let cause = found.errors.first().map(|cause| format!(" ({cause})")).unwrap_or_default();
            return Err(format!(
                "the system has no certificates of CAs{cause}: install ca-certificates, or give the server's CA with tls-certificates=DIR"
            ));
        }
        return Ok(authorities);
    };
    let path = directory.join(AUTHORITY);
    for certificate in read_certificates(&path)? {
        authorities.add(certificate).map_err(|cause| format!("{}: a certificate cannot be used: {cause}", path.display()))?;
    }
    Ok(authorities)
}

/// Our own certificates and their key, if we have any.
fn load_own(directory: Option<&Path>) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, PathBuf)>, String> {
    let Some(directory) = directory else { return Ok(None) };
    let (certificate, key) = (directory.join(CERTIFICATE), directory.join(KEY));
    // Without a directory there is none, either; but that was not meant.
    let is_there = |path: &Path| Ok::<_, String>(!directory.is_dir() || path.try_exists().map_err(|cause| unreadable(path, &cause))?);
    match (is_there(&certificate)?, is_there(&key)?) {
        (false, false) => return Ok(None),
        (true, true) => {}
        _ => return Err(format!("{}: {CERTIFICATE} and {KEY} belong together, and one of them is missing", directory.display())),
    }
    let chain = read_certificates(&certificate)?;
    expect_file(&key)?;
    let secret = PrivateKeyDer::from_pem_file(&key)
        .map_err(|cause| format!("{} cannot be read as a private key in PEM without a password: {cause}", key.display()))?;
    Ok(Some((chain, secret, key)))
}

fn unreadable(path: &Path, cause: &dyn Display) -> String {
    format!("{} cannot be read: {cause}", path.display())
}

/// Reading another thing than a file may never end.
fn expect_file(path: &Path) -> Result<(), String> {
    match path.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(()),
        Ok(_) => Err(unreadable(path, &"it is no file")),
        Err(cause) => Err(unreadable(path, &cause)),
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    expect_file(path)?;
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = found.map_err(|cause| unreadable(path, &cause))?;
    if found.is_empty() { Err(format!("{} has no certificate in PEM", path.display())) } else { Ok(found) }
}

/// Takes anybody for the server.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("not this version of TLS".into()))
    }

    /// That it has the key of the certificate that it shows.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
