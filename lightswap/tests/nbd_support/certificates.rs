//! Certificates for servers and clients, from a CA of the test's own, in the files that nbdkit, qemu-nbd and clients look for.

use super::short_path;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

/// What is wrong with a server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    Nothing,
    Expired,
    NotYetValid,
    /// It is for memory-1.example.
    OtherName,
    /// It has its name only where names used to be.
    NoAlternativeName,
    /// It is for clients.
    OtherPurpose,
}

/// Removed when it is dropped.
#[derive(Debug)]
pub struct Certificates {
    directory: PathBuf,
}

impl Certificates {
    pub fn new() -> Self {
        Self::with(Flaw::Nothing)
    }

    pub fn with(flaw: Flaw) -> Self {
        let certificates = Self { directory: short_path("certificates") };
        certificates.renew(flaw);
        certificates
    }

    /// A new CA with new certificates in place of the old ones.
    pub fn renew(&self, flaw: Flaw) {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("CA {} of a test", COUNT.fetch_add(1, Relaxed)));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        for (folder, name) in [("server", "server"), ("client", "client"), ("ca", "")] {
            let folder = self.directory.join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("ca-cert.pem"), &authority).unwrap();
            if !name.is_empty() {
                let (certificate, key) = issue(&issuer, name, flaw);
                std::fs::write(folder.join(format!("{name}-cert.pem")), certificate).unwrap();
                std::fs::write(folder.join(format!("{name}-key.pem")), key).unwrap();
            }
        }
    }

    /// For a server.
    pub fn of_server(&self) -> PathBuf {
        self.directory.join("server")
    }

    /// For a client with a certificate.
    pub fn of_client(&self) -> PathBuf {
        self.directory.join("client")
    }

    /// For a client that has only the CA's.
    pub fn of_authority(&self) -> PathBuf {
        self.directory.join("ca")
    }

    /// As an option of a URL.
    pub fn option(&self) -> String {
        option(&self.of_authority())
    }
}

pub fn option(directory: &Path) -> String {
    format!("tls-certificates={}", directory.display())
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn issue(issuer: &Issuer<'_, KeyPair>, name: &str, flaw: Flaw) -> (String, String) {
    let is_server = name == "server";
    let flaw = if is_server { flaw } else { Flaw::Nothing };
    let names: &[&str] = match flaw {
        Flaw::OtherName => &["memory-1.example"],
        Flaw::NoAlternativeName => &[],
        _ => &["localhost", "127.0.0.1", "::1"],
    };
    let mut params = CertificateParams::new(names.iter().map(|name| name.to_string()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name.push(DnType::CommonName, if is_server { "localhost" } else { "a client" });
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    let is_for_servers = is_server && flaw != Flaw::OtherPurpose;
    params.extended_key_usages = vec![if is_for_servers { ExtendedKeyUsagePurpose::ServerAuth } else { ExtendedKeyUsagePurpose::ClientAuth }];
    match flaw {
        Flaw::Expired => params.not_after = date_time_ymd(2020, 1, 1),
        Flaw::NotYetValid => params.not_before = date_time_ymd(2090, 1, 1),
        _ => {}
    }
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}
