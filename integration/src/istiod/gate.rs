//! What istiod checks of its callers: token, cluster, node, and a request for a certificate.

use anyhow::{Context, Result, bail, ensure};
use proto::ca::IstioCertificateRequest;
use proto::discovery::Node;
use proto::wellknown::Struct;
use proto::wellknown::value::Kind as Value;
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_PKCS9_EXTENSION_REQUEST, OID_SIG_ECDSA_WITH_SHA256,
};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension};

use super::record::Caller;

/// Longest lifetime that is signed, in seconds: 90 days.
const SECONDS_MAX: i64 = 90 * 24 * 3600;
/// The key of the metadata that names whom a certificate is for.
const WHOM: &str = "ImpersonatedIdentity";

/// Checks who calls.
///
/// Errors: why the caller is not let in.
pub fn caller(caller: &Caller, tokens: &[String], cluster: &str) -> Result<(), String> {
    let shown = caller.header("authorization");
    let Some(token) = shown.strip_prefix("Bearer ") else {
        return Err("no bearer token".to_owned());
    };
    if !tokens.iter().any(|known| known == token) {
        return Err("the token is not valid".to_owned());
    }
    match caller.header("clusterid") {
        found if found == cluster => Ok(()),
        found => Err(format!("clusterid {found:?} is not {cluster:?}")),
    }
}

/// Checks the form of a node's id and that its metadata says the same.
///
/// Errors: what is wrong, as text.
pub fn node(node: &Node) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("node id {:?}: {why}", node.id));
    let parts: Vec<_> = node.id.split('~').collect();
    let [kind, ip, name, domain] = parts.as_slice() else {
        return wrong("not four parts");
    };
    if *kind != "ztunnel" {
        return wrong("not of the kind ztunnel");
    }
    if ip.parse::<std::net::IpAddr>().is_err() {
        return wrong("no address");
    }
    let Some((pod, namespace)) = name.rsplit_once('.') else {
        return wrong("no pod and namespace");
    };
    if *domain != format!("{namespace}.svc.cluster.local") {
        return wrong("another domain");
    }
    for (key, value) in [
        ("NAME", pod),
        ("NAMESPACE", namespace),
        ("INSTANCE_IPS", ip),
    ] {
        if text(node, key) != Some(value) {
            return wrong(&format!("metadata {key} is {:?}", text(node, key)));
        }
    }
    match text(node, "NODE_NAME") {
        Some(_) => Ok(()),
        None => wrong("no metadata NODE_NAME"),
    }
}

/// A text of the node's metadata.
pub fn text<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    match node.metadata.as_ref()?.fields.get(key)?.kind.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

/// Checks a request for a certificate and returns whom it is for.
///
/// - `own`: the identity that the caller has by its token, where it is a workload itself: it must name nobody
///
/// Errors: what is wrong with it.
pub fn certificate(request: &IstioCertificateRequest, own: Option<String>) -> Result<String> {
    let whom = match (&request.metadata, own) {
        (None, Some(own)) => own,
        (Some(metadata), None) => named(metadata)?,
        (metadata, _) => bail!("metadata of a caller of the other kind: {metadata:?}"),
    };
    ensure!(
        (1..=SECONDS_MAX).contains(&request.validity_duration),
        "validity of {} s",
        request.validity_duration
    );
    signing_request(&request.csr, &whom)?;
    Ok(whom)
}

fn named(metadata: &Struct) -> Result<String> {
    let fields = &metadata.fields;
    ensure!(fields.len() == 1, "metadata of {} keys", fields.len());
    match fields.get(WHOM).and_then(|value| value.kind.as_ref()) {
        Some(Value::StringValue(whom)) => Ok(whom.clone()),
        other => bail!("{WHOM}: {other:?}"),
    }
}

/// P-256, ECDSA with SHA-256, no subject, and of extensions only a critical alternative name: the identity as URI.
fn signing_request(pem: &str, whom: &str) -> Result<()> {
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
        .map_err(|why| anyhow::anyhow!("signing request: {why}"))?;
    let (rest, request) = X509CertificationRequest::from_der(&der)?;
    ensure!(rest.is_empty(), "bytes after the signing request");
    ensure!(
        request.signature_algorithm.algorithm == OID_SIG_ECDSA_WITH_SHA256,
        "signed otherwise than with ECDSA and SHA-256"
    );
    let info = &request.certification_request_info;
    ensure!(
        info.subject.iter().next().is_none(),
        "subject {}",
        info.subject
    );
    let curve = info.subject_pki.algorithm.parameters.as_ref();
    let curve = curve.and_then(|any| any.as_oid().ok());
    ensure!(
        curve == Some(OID_EC_P256),
        "a key on another curve: {curve:?}"
    );
    let attributes = info.attributes();
    ensure!(
        attributes.len() == 1 && attributes[0].oid == OID_PKCS9_EXTENSION_REQUEST,
        "attributes {attributes:?}"
    );
    let ParsedExtensions { names, critical } = extensions(info)?;
    ensure!(critical, "the alternative name is not critical");
    match names.as_slice() {
        [name] if name == whom => Ok(()),
        other => bail!("alternative names {other:?}, but for {whom}"),
    }
}

struct ParsedExtensions {
    names: Vec<String>,
    critical: bool,
}

fn extensions(
    info: &x509_parser::certification_request::X509CertificationRequestInfo<'_>,
) -> Result<ParsedExtensions> {
    use x509_parser::cri_attributes::ParsedCriAttribute;
    let attribute = info.attributes().first().context("no extensions")?;
    let ParsedCriAttribute::ExtensionRequest(request) = attribute.parsed_attribute() else {
        bail!("extensions that cannot be read");
    };
    let [extension] = request.extensions.as_slice() else {
        bail!("{} extensions", request.extensions.len());
    };
    let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
        bail!("extension {}", extension.oid);
    };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Ok((*uri).to_owned()),
        other => bail!("alternative name {other}"),
    };
    Ok(ParsedExtensions {
        names: names
            .general_names
            .iter()
            .map(name)
            .collect::<Result<_>>()?,
        critical: extension.critical,
    })
}
