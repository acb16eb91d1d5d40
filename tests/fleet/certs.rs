//! Certificates, made for one test each.

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber};

pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) folder: PathBuf,
}

/// A certificate and its key, as files.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Ca {
    pub(crate) fn new(folder: &Path, name: &str) -> Ca {
        std::fs::create_dir_all(folder).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let own = params.self_signed(&key).unwrap();
        write(&folder.join("ca.pem"), &own.pem());
        Ca { issuer: Issuer::new(params, key), folder: folder.to_owned() }
    }

    pub(crate) fn pem(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// For the authority on this machine's loopback address.
    pub(crate) fn server(&self, file: &str) -> Files {
        self.server_at(file, &[IpAddr::V4(Ipv4Addr::LOCALHOST)])
    }

    pub(crate) fn server_at(&self, file: &str, addresses: &[IpAddr]) -> Files {
        let names: Vec<SanType> = addresses.iter().copied().map(SanType::IpAddress).collect();
        self.make(file, 1, &names)
    }

    pub(crate) fn node(&self, file: &str, node: &str) -> Files {
        self.uris(file, 2, &[&format!("urn:meterd:node:{node}")])
    }

    pub(crate) fn person(&self, role: &str, name: &str) -> Files {
        self.uris(name, 3, &[&format!("urn:meterd:role:{role}:{name}")])
    }

    pub(crate) fn uris(&self, file: &str, serial: u64, uris: &[&str]) -> Files {
        let names: Vec<SanType> = uris.iter().map(|uri| SanType::URI(Ia5String::try_from(*uri).unwrap())).collect();
        self.make(file, serial, &names)
    }

    fn make(&self, file: &str, serial: u64, names: &[SanType]) -> Files {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, file);
        params.subject_alt_names = names.to_vec();
        params.serial_number = Some(SerialNumber::from(serial));
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let files = Files { cert: self.folder.join(format!("{file}.pem")), key: self.folder.join(format!("{file}.key")) };
        write(&files.cert, &cert.pem());
        write(&files.key, &key.serialize_pem());
        files
    }
}

pub(crate) fn write(path: &Path, text: &str) {
    let part = path.with_extension("part");
    drop(std::fs::remove_file(&part));
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part).unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    std::fs::rename(&part, path).unwrap();
}
