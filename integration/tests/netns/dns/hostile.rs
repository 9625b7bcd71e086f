//! Bytes on port 53 that are no questions: answered with an error or not at all, and nobody else notices.

use anyhow::Result;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{Scene, raw};

/// Datagrams of random bytes.
const RANDOM: usize = 60;

/// A question for the IPv4 addresses of `web.shop`, id 1.
const QUESTION: &[u8] = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x03web\x04shop\0\0\x01\0\x01";

fn changed(at: usize, byte: u8) -> Vec<u8> {
    let mut message = QUESTION.to_vec();
    message[at] = byte;
    message
}

/// The response code of what came back.
fn code(back: &str) -> Option<u8> {
    u8::from_str_radix(back.get(7..8)?, 16).ok()
}

#[test]
fn what_is_no_question_is_an_error() -> Result<()> {
    let scene = Scene::set()?;
    let ask = |bytes: &[u8]| {
        raw(
            scene.pod("client-0"),
            scene.resolver(),
            "connected",
            bytes,
            500,
        )
    };
    let long_label = [&QUESTION[..12], &[64], &[b'a'; 64], b"\0\0\x01\0\x01"].concat();
    let long_name = [
        &QUESTION[..12],
        &b"\x3f"
            .iter()
            .chain(&[b'a'; 63])
            .copied()
            .collect::<Vec<_>>()
            .repeat(5),
        b"\0\0\x01\0\x01",
    ]
    .concat();
    let loops = [&QUESTION[..12], b"\xc0\x0c\0\x01\0\x01"].concat();
    let two_opt = [
        &changed(11, 2)[..],
        &b"\0\0\x29\x04\xd0\0\0\0\0\0\0".repeat(2),
    ]
    .concat();
    let (format, not_implemented) = (Some(1), Some(4));
    for (what, bytes, expected) in [
        ("a question", QUESTION.to_vec(), Some(0)),
        ("an answer", changed(2, 0x81), format),
        ("a notification", changed(2, 0x21), not_implemented),
        ("an update", changed(2, 0x29), not_implemented),
        ("no question", changed(5, 0), format),
        ("two questions", changed(5, 2), format),
        ("records that are not there", changed(11, 1), format),
        ("many records that are not there", changed(10, 0xff), format),
        ("a name cut short", QUESTION[..20].to_vec(), format),
        ("no type", QUESTION[..22].to_vec(), format),
        ("a label too long", long_label, format),
        ("a name too long", long_name, format),
        ("a name that points to itself", loops, format),
        ("two OPT records", two_opt, format),
        ("half a header", QUESTION[..6].to_vec(), None),
    ] {
        let back = ask(&bytes)?;
        let found = back.as_deref().and_then(code);
        assert_eq!(found, expected, "{what}: {back:?}");
        if let Some(back) = back {
            assert_eq!(&back[..4], "0001", "{what}: its id: {back}");
        }
    }
    Ok(())
}

#[test]
fn random_bytes_harm_nobody() -> Result<()> {
    let scene = Scene::set()?;
    let (client, other) = (scene.pod("client-0"), scene.pod("other-0"));
    let pid = scene.daemon().pid();
    let mut rng = SmallRng::seed_from_u64(53);
    for n in 0..RANDOM {
        let mut bytes = match n % 2 {
            0 => QUESTION.to_vec(),
            _ => vec![0; rng.random_range(0..600)],
        };
        let faults = if n % 2 == 0 {
            rng.random_range(1..4)
        } else {
            bytes.len()
        };
        for _ in 0..faults {
            let at = rng.random_range(0..bytes.len());
            bytes[at] = rng.random();
        }
        for over in ["connected", "tcp"] {
            raw(client, scene.resolver(), over, &bytes, 20)?;
        }
    }
    for pod in [client, other] {
        let reply = super::dig(pod, scene.resolver(), &["web.shop"])?;
        assert_eq!(reply.data("A"), ["10.96.0.4"], "{}", reply.text);
    }
    let log = scene.daemon().log();
    assert!(!log.contains("panicked"), "{}", scene.daemon().tail());
    assert_eq!(scene.daemon().pid(), pid);
    assert!(scene.daemon().get(15021, "/healthz/ready")?.status == 200);
    Ok(())
}

#[test]
fn over_tcp_questions_come_in_any_pieces_and_one_after_another() -> Result<()> {
    let scene = Scene::set()?;
    let framed = |message: &[u8]| {
        [
            &u16::try_from(message.len()).unwrap_or(0).to_be_bytes(),
            message,
        ]
        .concat()
    };
    let two = [framed(QUESTION), framed(&changed(1, 2))].concat();
    let server = std::net::SocketAddr::new(scene.resolver(), 53).to_string();
    // two in one go
    let back = raw(scene.pod("client-0"), scene.resolver(), "tcp", &two, 2000)?;
    let back = back.unwrap_or_default();
    assert!(back.starts_with("002a0001"), "{back}");
    // a length that is never filled, and none at all: the connection ends, and others go on
    for bytes in [&b"\xff\xff\0"[..], b"\0\0", b"\0"] {
        let back = raw(scene.pod("client-0"), scene.resolver(), "tcp", bytes, 200)?;
        assert!(back.is_none_or(|back| back.is_empty()), "{bytes:?}");
    }
    let seen = scene.pod("client-0").podapp(&[
        "dig", "--server", &server, "--way", "tcp", "--name", "web.shop",
    ])?;
    assert_eq!(seen["answers"][0]["answer"], "10.96.0.4", "{seen}");
    Ok(())
}
