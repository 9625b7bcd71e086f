//! A certificate that is taken back, on either leg: what is open ends, nothing new is made, and both come back.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use integration::peer::Root;
use integration::world::networks::Named;
use integration::{model, until};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::scene::{EAST, ECHO, SOON, Scene, WEST, connect, echo, hold, vips};

/// What is said of a connection that ends by it.
const REVOKED: &str = "connection closed: peer certificate revoked by CRL";

/// The serial number of the certificate in a PEM file, big-endian.
fn of_file(file: &Path) -> Result<Vec<u8>> {
    let der = CertificateDer::from_pem_slice(&fs::read(file)?);
    let der = der.map_err(|why| anyhow::anyhow!("{}: {why}", file.display()))?;
    let (_, cert) = x509_parser::parse_x509_certificate(&der)?;
    Ok(cert.raw_serial().to_vec())
}

/// The serial number of the certificate that a daemon has for an identity, big-endian.
fn of_daemon(scene: &Scene, side: usize, identity: &str) -> Result<Vec<u8>> {
    let dump = scene.daemons[side].config_dump()?;
    let all = dump["certificates"]
        .as_array()
        .context("certificates in the dump")?;
    let mut mine = all.iter().filter(|one| one["identity"] == identity);
    let one = mine
        .next()
        .with_context(|| format!("no certificate of {identity}"))?;
    let decimal = one["certChain"][0]["serialNumber"]
        .as_str()
        .context("its serial number")?;
    let mut bytes = vec![0u8; 20];
    for digit in decimal.bytes() {
        let mut carry = u16::from(digit - b'0');
        for byte in bytes.iter_mut().rev() {
            carry += u16::from(*byte) * 10;
            *byte = u8::try_from(carry & 0xff)?;
            carry >>= 8;
        }
    }
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    Ok(bytes.split_off(zeros))
}

#[test]
fn revocation_of_the_gateway_or_of_who_is_behind_it_ends_what_is_open() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let list = dir.path().join("revoked.pem");
    let scene = Scene::set_with(Named::Address, &[("CRL_PATH", &list.to_string_lossy())])?;
    let root = Root::of_world(&scene.net.sides[WEST].world.node(0).ca)?;
    let (client, server) = (scene.pod("client-west-0"), scene.pod("server-east-0"));
    let (daemon, to) = (&scene.daemons[WEST], vips(20, ECHO)[0]);
    let mut number = 0;
    let mut revoke = |serials: &[Vec<u8>]| -> Result<()> {
        number += 1;
        model::replace(&list, &root.revoked(number, serials)?)
    };
    let serials = [
        (
            "the gateway",
            of_file(&scene.gateways[EAST].seat().papers.chain)?,
        ),
        ("the server", of_daemon(&scene, EAST, &server.identity())?),
    ];
    let flag = [("reporter", "source"), ("response_flags", "CERT_REVOKED")];
    let failed = || {
        anyhow::Ok(
            daemon
                .metrics()?
                .sum("istio_tcp_connections_failed_total", &flag),
        )
    };
    for (who, serial) in serials {
        let held = hold(client, to).context(who)?;
        let (before, after) = (failed()?, scene.lines(WEST));
        revoke(&[serial])?;
        held.wait_line(SOON, "the cut", |line| line.starts_with("cut"))
            .context(who)?;
        until(SOON, "the reason in the access log", || {
            let mut lines = daemon.access().into_iter().skip(after);
            Ok(lines.find(|line| line.is("outbound") && line.field("error") == REVOKED))
        })
        .with_context(|| format!("{who}: {}", daemon.tail()))?;
        assert_eq!(failed()? - before, 1.0, "{who}");
        let seen = connect(client, to, &["--send", "never"])?;
        assert_ne!(seen["received"], "never", "{who}: {seen}");
        revoke(&[])?;
        until(SOON, "forgiven", || Ok(echo(client, to, "again").ok())).context(who)?;
    }
    Ok(())
}
