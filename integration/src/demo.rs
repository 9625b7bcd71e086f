//! The demo: one connection between two pods, from plaintext to the mesh and back, told step by step; and, as a story of its
//! own, what a waypoint adds.
//!
//! Every sentence with a ✓ was checked just before it was printed: on the wire, in the applications, in the daemons'
//! own words. How it is printed is `tell`, what happens in each step `scenes`, what it happens on `stage`.

pub mod scenes;
pub mod stage;
pub mod tell;
pub mod waypoint;

use anyhow::{Result, ensure};

use crate::{leftovers, place};
use scenes::{SCENES, Scene};
use stage::Stage;
use tell::Teller;

/// How the demo is told.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// The story goes to stderr, stdout ends with one JSON line.
    pub json: bool,
    /// Everything is left running, and how to look around is printed.
    pub keep: bool,
    /// Mesh state and certificates come from a control plane instead of files; it ends with the story.
    pub istiod: bool,
    /// The story of a waypoint instead.
    pub waypoint: bool,
}

/// Tells the whole story; true if every step held.
///
/// Errors: none of the steps' own, they are told; only that the machine cannot host a demo at all.
pub fn tell(options: Options) -> Result<bool> {
    place::require()?;
    let mut teller = Teller::new(options.json);
    teller.say(
        "ztunnel carries the connections of ordinary pods over mutually authenticated, encrypted tunnels. This shows \
         it on one machine: nothing below is simulated, and every line with a tick was verified.",
    );
    let (first, scenes) = if options.waypoint {
        place::envoy()?;
        (&waypoint::RAISE, &waypoint::SCENES[..])
    } else if options.istiod {
        (&scenes::RAISE_UNDER_ISTIOD, &SCENES[..])
    } else {
        (&scenes::RAISE, &SCENES[..])
    };
    let mut stage = play(&mut teller, first, None);
    for scene in scenes {
        stage = play(&mut teller, scene, stage);
    }
    if options.keep && teller.ok() {
        stage = play(&mut teller, &scenes::KEEP, stage);
    } else {
        play(&mut teller, &scenes::CLEAN, stage.take());
    }
    drop(stage);
    Ok(teller.end())
}

/// Plays one scene on the stage that the last one left; none is left after a scene that failed.
fn play(teller: &mut Teller, scene: &Scene, stage: Option<Stage>) -> Option<Stage> {
    if teller.ok() {
        teller.chapter(scene.title);
        teller.say(scene.prose);
    }
    let next = teller.step(scene.step, |teller| (scene.play)(stage, teller));
    next.flatten()
}

/// Takes down what demos left running; worlds that were kept for something else stay.
///
/// Errors: the first thing that would not go.
pub fn clean() -> Result<()> {
    place::require()?;
    leftovers::sweep();
    for (id, _) in leftovers::worlds() {
        if leftovers::dir(&id).join(stage::MARK).exists() {
            leftovers::demolish(&id)?;
            nothing_left(&id)?;
            println!("took down {id}");
        }
    }
    Ok(())
}

/// Fails unless nothing of the world is left on this machine.
fn nothing_left(id: &str) -> Result<()> {
    let namespaces = leftovers::namespaces(id);
    ensure!(
        namespaces.is_empty(),
        "namespaces left: {}",
        namespaces.join(", ")
    );
    for path in [leftovers::dir(id), place::cgroup_root()?.join(id)] {
        ensure!(!path.exists(), "{} is left", path.display());
    }
    Ok(())
}
