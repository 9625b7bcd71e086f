//! Makes a world by hand, to look around in; also the companion that takes one down when its owner dies.
#![forbid(unsafe_code)]

use std::io::Read;

use anyhow::Result;
use clap::{Parser, Subcommand};
use integration::{Daemon, Layout, World, leftovers, place};

/// Nodes and pods as network namespaces, to try the daemon in.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a world, leave it running and print how to enter it.
    Up {
        /// Start a daemon on each node.
        #[arg(long)]
        daemons: bool,
        /// Label the namespace `shop` (implies --daemons).
        #[arg(long)]
        ambient: bool,
    },
    /// Make a world that lasts until the input ends or the process is killed.
    Hold,
    /// Take down all worlds that were left running or lost their owner, or the one named.
    Down {
        /// Id of the world.
        id: Option<String>,
    },
    /// List the worlds of this machine.
    List,
    /// Wait for the end of the input, then take the world down unless it is to be kept.
    #[command(hide = true)]
    Reap {
        /// Id of the world.
        id: String,
    },
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Up { daemons, ambient } => up(daemons || ambient, ambient),
        Command::Hold => hold(),
        Command::Down { id } => down(id.as_deref()),
        Command::List => {
            leftovers::worlds()
                .iter()
                .for_each(|(id, kept)| println!("{id}{}", if *kept { " (kept)" } else { "" }));
            Ok(())
        }
        Command::Reap { id } => reap(&id),
    }
}

fn up(with_daemons: bool, ambient: bool) -> Result<()> {
    let mut world = World::raise(&Layout::standard())?;
    let mut daemons = if with_daemons {
        world.daemons()?
    } else {
        Vec::new()
    };
    if ambient {
        world.label("shop", true, &daemons.iter().collect::<Vec<_>>())?;
    }
    describe(&world, &daemons);
    world.keep()?;
    daemons.iter_mut().for_each(Daemon::keep);
    Ok(())
}

fn hold() -> Result<()> {
    let world = World::raise(&Layout::standard())?;
    println!("{}", world.id());
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest)?;
    Ok(())
}

fn describe(world: &World, daemons: &[Daemon]) {
    println!("world {} in {}", world.id(), world.dir().display());
    for node in world.nodes() {
        println!(
            "\n{}: wire {} {}   ip netns exec {} bash",
            node.name, node.wire4, node.wire6, node.netns_name
        );
        println!("  pods file {}", node.enrolment.display());
        for daemon in daemons
            .iter()
            .filter(|daemon| daemon.node().name == node.name)
        {
            println!(
                "  daemon pid {}   log {}",
                daemon.pid(),
                daemon.log_file().display()
            );
            println!(
                "    ip netns exec {} curl -s localhost:15000/config_dump",
                daemon.netns_name()
            );
        }
    }
    println!("\nmesh state {}", world.dir().join("mesh.yaml").display());
    for pod in world.pods() {
        let (cgroup, netns) = (pod.cgroup.display(), pod.netns.display());
        println!(
            "\npod {}/{} on node{}: {} {}",
            pod.namespace,
            pod.name,
            pod.node + 1,
            pod.v4,
            pod.v6
        );
        println!("  sh -c 'echo 0 > {cgroup}/cgroup.procs; exec nsenter --net={netns} bash'");
    }
    if let Ok(binary) = place::binary("world") {
        println!("\ntake it down: {} down {}", binary.display(), world.id());
    }
}

fn down(id: Option<&str>) -> Result<()> {
    if let Some(id) = id {
        return leftovers::demolish(id);
    }
    for (id, _) in leftovers::worlds().iter().filter(|(_, kept)| *kept) {
        leftovers::demolish(id)?;
        println!("took down {id}");
    }
    leftovers::sweep()
        .iter()
        .for_each(|id| println!("swept away {id}"));
    Ok(())
}

fn reap(id: &str) -> Result<()> {
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest)?;
    let gone = leftovers::worlds()
        .iter()
        .all(|(known, kept)| known != id || *kept);
    if gone {
        Ok(())
    } else {
        leftovers::demolish(id)
    }
}
