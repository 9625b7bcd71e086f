//! Addresses of host names for the data threads, by the resolver of the node (`/etc/resolv.conf` as it is at start).
//!
//! All lookups run on one thread; the others ask it through a queue. Many that ask for one name at a time share a lookup.
//! Which of the addresses is used is left to `mesh`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use proxy::needs::{self, Pending};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{Id, JoinSet};
use tokio::time::timeout;

/// Questions that wait for the resolver's thread; more are refused.
const QUESTIONS_MAX: usize = 1024;
/// Names looked up at a time; further questions wait in the queue.
const LOOKUPS_MAX: usize = 256;
/// Longest wait for all servers and search domains together.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(8);
/// Names whose addresses are remembered (spec: routing §4).
const CACHE_NAMES: u64 = 4096;
/// Addresses of one name that are used.
const ADDRESSES_MAX: usize = 64;
/// Longest text of an error, in characters.
const ERROR_CHARS_MAX: usize = 200;

type Answer = Result<Vec<IpAddr>, String>;

struct Question {
    host: String,
    answer: oneshot::Sender<Answer>,
}

/// Asks the resolver, from any thread. Cheap to clone.
#[derive(Clone)]
pub struct Names {
    questions: mpsc::Sender<Question>,
}

impl Names {
    /// Starts the node's resolver as a task of this thread, which must be within a `LocalSet`.
    ///
    /// A node without a usable `/etc/resolv.conf` goes without: every lookup then fails and says so.
    pub fn of_node(ipv4_only: bool) -> Self {
        let resolver = hickory_resolver::system_conf::read_system_conf()
            .map_err(|error| error.to_string())
            .and_then(|(config, options)| build(config, options, ipv4_only));
        if let Err(error) = &resolver {
            tracing::warn!(
                error,
                "no resolver: endpoints known by host name cannot be reached"
            );
        }
        Self::start(resolver)
    }

    fn start(resolver: Result<TokioResolver, String>) -> Self {
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        tokio::task::spawn_local(serve(resolver, asked));
        Self { questions }
    }
}

impl needs::Resolver for Names {
    fn resolve<'a>(&'a self, host: &'a str) -> Pending<'a, Answer> {
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            let host = host.to_owned();
            self.questions
                .try_send(Question { host, answer })
                .map_err(|_| "too many lookups at once".to_owned())?;
            answered
                .await
                .unwrap_or_else(|_| Err("the lookup failed".to_owned()))
        })
    }
}

fn build(
    config: ResolverConfig,
    mut options: ResolverOpts,
    ipv4_only: bool,
) -> Result<TokioResolver, String> {
    options.cache_size = CACHE_NAMES;
    options.ip_strategy = if ipv4_only {
        LookupIpStrategy::Ipv4Only
    } else {
        LookupIpStrategy::Ipv4AndIpv6
    };
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .map_err(|error| error.to_string())
}

/// Lookups under way, and who waits for them.
#[derive(Default)]
struct Desk {
    under_way: JoinSet<Answer>,
    names: HashMap<Id, String>,
    waiting: HashMap<String, Vec<oneshot::Sender<Answer>>>,
}

impl Desk {
    fn take(&mut self, resolver: &Result<TokioResolver, String>, question: Question) {
        let Question { host, answer } = question;
        let resolver = match resolver {
            Ok(resolver) => resolver.clone(),
            // who asked may have given up, here as below
            Err(why) => return drop(answer.send(Err(why.clone()))),
        };
        let waiting = self.waiting.entry(host.clone()).or_default();
        waiting.push(answer);
        if waiting.len() == 1 {
            let name = host.clone();
            let task = self
                .under_way
                .spawn_local(async move { look_up(&resolver, &name).await });
            self.names.insert(task.id(), host);
        }
    }

    fn give(&mut self, lookup: Id, answer: &Answer) {
        let name = self.names.remove(&lookup);
        let waiting = name.and_then(|name| self.waiting.remove(&name));
        for one in waiting.into_iter().flatten() {
            let _ = one.send(answer.clone());
        }
    }
}

async fn serve(resolver: Result<TokioResolver, String>, mut asked: mpsc::Receiver<Question>) {
    let mut desk = Desk::default();
    loop {
        tokio::select! {
            Some(question) = asked.recv(), if desk.under_way.len() < LOOKUPS_MAX => {
                desk.take(&resolver, question);
            }
            Some(done) = desk.under_way.join_next_with_id() => match done {
                Ok((lookup, answer)) => desk.give(lookup, &answer),
                // it panicked, which is logged and ends no other
                Err(error) => desk.give(error.id(), &Err("the lookup failed".to_owned())),
            },
            else => break,
        }
    }
}

async fn look_up(resolver: &TokioResolver, host: &str) -> Answer {
    match timeout(LOOKUP_TIMEOUT, resolver.lookup_ip(host)).await {
        Ok(Ok(found)) => Ok(found.iter().take(ADDRESSES_MAX).collect()),
        Ok(Err(error)) => Err(error.to_string().chars().take(ERROR_CHARS_MAX).collect()),
        Err(_) => Err(format!("no answer within {LOOKUP_TIMEOUT:?}")),
    }
}

#[cfg(test)]
mod tests;
