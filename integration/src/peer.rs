//! A peer that the tests play themselves, over TLS and HTTP/2 libraries, with whatever certificate they like.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SanType,
    SerialNumber,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::netns;

/// Most time for an exchange with the daemon.
const EXCHANGE_MAX: Duration = Duration::from_secs(20);

/// Before and after now, for a list's validity.
const HOUR: Duration = Duration::from_secs(3600);

/// A certificate with its key.
pub struct Papers {
    /// leaf
    pub chain: Vec<CertificateDer<'static>>,
    /// its key
    pub key: PrivateKeyDer<'static>,
}

/// A root that can sign.
pub struct Root(Issuer<'static, KeyPair>);

impl Root {
    /// The root that the daemons of a world share.
    ///
    /// Errors: no daemon has made it yet, or it cannot be read.
    pub fn of_world(ca: &Path) -> Result<Self> {
        let text = fs::read_to_string(ca.join("root.pem")).context("read the shared root")?;
        let key =
            PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|why| anyhow!("key: {why}"))?;
        let cert = CertificateDer::from_pem_slice(text.as_bytes())
            .map_err(|why| anyhow!("certificate: {why}"))?;
        Ok(Self(Issuer::from_ca_cert_der(
            &cert,
            KeyPair::try_from(&key)?,
        )?))
    }

    /// A root that nobody knows.
    ///
    /// Errors: of the library.
    pub fn unknown() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self(Issuer::new(params, KeyPair::generate()?)))
    }

    /// A list of revoked certificates, PEM.
    ///
    /// - `number`: higher than that of the list before
    /// - `serials`: big-endian
    ///
    /// Errors: of the library.
    pub fn revoked(&self, number: u64, serials: &[Vec<u8>]) -> Result<String> {
        let now = SystemTime::now();
        let entries = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: (now - HOUR).into(),
            next_update: (now + HOUR).into(),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: entries.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&self.0)?.pem()?)
    }

    /// Papers for an identity, valid from `age` ago for `life`.
    ///
    /// Errors: an identity that is no URI.
    pub fn papers(&self, identity: &str, age: Duration, life: Duration) -> Result<Papers> {
        self.papers_from(identity, SystemTime::now() - age, life)
    }

    /// Papers for an identity, valid from then on for `life`.
    ///
    /// Errors: as [`Root::papers`].
    pub fn papers_from(&self, identity: &str, from: SystemTime, life: Duration) -> Result<Papers> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.try_into()?)];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        params.not_before = from.into();
        params.not_after = (from + life).into();
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.0)?;
        let der =
            PrivateKeyDer::try_from(key.serialize_der()).map_err(|why| anyhow!("key: {why}"))?;
        Ok(Papers {
            chain: vec![cert.der().clone()],
            key: der,
        })
    }
}

/// Takes any server for what it says it is.
#[derive(Debug)]
struct Gullible(Arc<CryptoProvider>);

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Settings of a TLS client with these papers and application protocols.
///
/// Errors: a key that does not fit.
pub fn client(papers: Option<Papers>, alpn: &[&str]) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible(provider)));
    let mut config = match papers {
        Some(papers) => builder.with_client_auth_cert(papers.chain, papers.key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}

/// Runs an exchange on a thread inside a namespace, for a bounded time.
///
/// Errors: the exchange's, or that it did not end in time.
pub fn play<T: Send>(netns: &Path, exchange: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
    netns::inside(netns, || -> Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            tokio::time::timeout(EXCHANGE_MAX, exchange())
                .await
                .context("no end of the exchange")?
        })
    })?
}

/// A TCP connection with TLS on it. The server's rejection of our papers comes only with the first read.
///
/// Errors: no connection, or the handshake failed on our side.
pub async fn tls(to: SocketAddr, config: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(to).await?;
    let name = ServerName::IpAddress(to.ip().into());
    Ok(TlsConnector::from(config).connect(name, tcp).await?)
}

/// What the other end sends until it closes; an error counts as the close.
pub async fn rest(
    mut stream: impl tokio::io::AsyncRead + Unpin,
) -> (Vec<u8>, Option<std::io::Error>) {
    let mut bytes = Vec::new();
    let ended = stream.read_to_end(&mut bytes).await;
    (bytes, ended.err())
}

/// Writes; a peer that has closed already is no error.
pub async fn push(stream: &mut (impl tokio::io::AsyncWrite + Unpin), bytes: &[u8]) {
    // the close shows up in what is read
    let _ = stream.write_all(bytes).await;
    let _ = stream.flush().await;
}
