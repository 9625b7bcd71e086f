//! Resolvers that are slow, silent, wrong or gone: an answer comes in bounded time, and the mesh's names are there all along.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use integration::{netns, until};

use super::{SOON, Scene, dig, raw};

/// Most time for the answer that there is none, when the resolver says nothing.
const GIVE_UP_MAX: Duration = Duration::from_secs(11);
/// The same, when the network says at once that nobody listens.
const REFUSED_MAX: Duration = Duration::from_millis(1500);

/// Asks for a name that cannot be told, while names of the mesh are asked for all along.
fn fails_in_time(scene: &Scene, server: IpAddr, name: &str, most: Duration) -> Result<()> {
    let (client, other) = (scene.pod("client-0"), scene.pod("other-0"));
    let since = Instant::now();
    let (took, worst) = std::thread::scope(|scope| -> Result<_> {
        let asking = scope.spawn(|| -> Result<_> {
            let reply = dig(client, server, &[name])?;
            assert_eq!(reply.status, "SERVFAIL", "{name}: {}", reply.text);
            assert!(!reply.has_flag("aa"), "{}", reply.text);
            Ok(since.elapsed())
        });
        let mut worst = Duration::ZERO;
        while !asking.is_finished() {
            for pod in [client, other] {
                let start = Instant::now();
                let reply = dig(pod, server, &["web.shop"])?;
                assert_eq!(reply.data("A"), ["10.96.0.4"], "{}", reply.text);
                worst = worst.max(start.elapsed());
            }
        }
        let took = asking
            .join()
            .map_err(|_| anyhow::anyhow!("{name}: no SERVFAIL"))??;
        Ok((took, worst))
    })?;
    assert!(took < most, "{name}: {took:?}");
    assert!(
        worst < Duration::from_secs(2),
        "names of the mesh waited {worst:?}"
    );
    Ok(())
}

#[test]
fn a_resolver_that_is_silent_or_gone_is_an_error_in_time() -> Result<()> {
    let mut scene = Scene::set()?;
    let server = scene.resolver();
    fails_in_time(&scene, server, "silent.test", GIVE_UP_MAX)?;
    // nobody listens
    scene.upstream.kill(SOON)?;
    fails_in_time(&scene, server, "gone.test", REFUSED_MAX)?;
    // nobody is there, and packets that way vanish
    let pod = scene.pod("resolver-0").clone();
    netns::ip(Some(&pod.netns_name), &["link set eth0 down".to_owned()])?;
    fails_in_time(&scene, server, "away.test", GIVE_UP_MAX)?;
    // it comes back
    netns::ip(
        Some(&pod.netns_name),
        &[
            "link set eth0 up",
            &format!(
                "route add default via {}",
                scene.mesh.world.node(0).gateway4
            ),
        ]
        .map(str::to_owned),
    )?;
    scene.upstream = pod.serve(&["dns"])?;
    until(SOON, "the resolver back", || {
        let reply = scene.dig(&["back.test"])?;
        Ok((reply.status == "NOERROR").then_some(()))
    })
}

#[test]
fn a_slow_answer_comes_and_holds_up_nobody() -> Result<()> {
    let scene = Scene::set()?;
    let since = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        let slow = scope.spawn(|| scene.dig(&["slow1500.test"]));
        let quick = scene.dig(&["quick.test"])?;
        assert_eq!(quick.data("A"), ["192.0.2.1"], "{}", quick.text);
        assert!(
            since.elapsed() < Duration::from_millis(1400),
            "{:?}",
            since.elapsed()
        );
        let slow = slow.join().map_err(|_| anyhow::anyhow!("no answer"))??;
        assert_eq!(slow.data("A"), ["192.0.2.1"], "{}", slow.text);
        Ok(())
    })
}

#[test]
fn false_answers_are_not_believed() -> Result<()> {
    let scene = Scene::set()?;
    for more in ["+notcp", "+noedns"] {
        let reply = scene.dig(&["spoof.test", more])?;
        assert_eq!(reply.data("A"), ["192.0.2.1"], "{more}: {}", reply.text);
    }
    // what is no message at all is an error, not a guess
    let reply = scene.dig(&["junk.test"])?;
    assert_eq!(reply.status, "SERVFAIL", "{}", reply.text);
    // and from outside nobody answers for the resolver: the pod's question has a port that is not told
    let reply = raw(
        scene.pod("client-0"),
        scene.resolver(),
        "connected",
        &[0; 12],
        500,
    )?;
    assert!(
        reply.is_some(),
        "a question without a question is answered with an error"
    );
    Ok(())
}

#[test]
fn several_resolvers_are_each_asked_for_their_own() -> Result<()> {
    let scene = Scene::set()?;
    let client = scene.pod("client-0");
    let second = scene.pod("private-0");
    let _second = second.serve(&["dns", "--answer", "192.0.2.2"])?;
    for (server, expected) in [
        (scene.resolver(), "192.0.2.1"),
        (second.v4.into(), "192.0.2.2"),
        (scene.resolver(), "192.0.2.1"),
    ] {
        let reply = dig(client, server, &["ttl60.test"]).context("asked")?;
        assert_eq!(reply.data("A"), [expected], "@{server}: {}", reply.text);
    }
    Ok(())
}
