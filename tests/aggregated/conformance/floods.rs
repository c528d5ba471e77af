//! What must not bring it down: many connections that say nothing, or too slowly, or too much. Each on the world of one test at
//! a time, directly at the server's port; meanwhile kube-apiserver is answered, and the server's memory stays bounded.

use std::{convert::Infallible, time::Duration};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, join_all},
    stream,
};
use http::Request;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::{
    stage::{Stage, paused},
    table::{Case, case},
};
use crate::{
    doors::{Ask, Way, Who, fill},
    replica,
    wire::{Body, Protocol, Server, whole},
    world::World,
};

/// By how much the server may grow, in KiB, whatever comes. It is a debug build, and keeps what it once had.
const GROWTH: u64 = 192 << 10;
/// Of the answer to kube-apiserver's question whether we are there; it takes us for gone after 5 s.
const ANSWERED: Duration = Duration::from_secs(4);
/// A connection that has asked nothing is closed after 32 s (upstream's header timeout); then it may take a moment.
const CLOSED: Duration = Duration::from_secs(45);
const CONNECTIONS: usize = 10_000;

pub(super) fn cases() -> Vec<Case> {
    let why = "kube-apiserver has its own limits, and sends us whole requests only";
    let line = |what, words, doing| case(0, what).not_through(why).does_directly(words, doing);
    vec![
        line(
            "10,000 connections that say nothing, half of them after a handshake",
            "kube-apiserver is answered all the while; those that are idle longest have to go; memory is bounded",
            idle,
        ),
        line(
            "connections that begin, and never finish: no handshake, no request, headers by single bytes, HTTP/2 without a request",
            "closed within 45 s; kube-apiserver is answered all the while",
            slow,
        ),
        line(
            "streams that are reset as soon as they begin (HTTP/2 rapid reset), 20,000 of them",
            "kube-apiserver is answered all the while; memory is bounded",
            reset,
        ),
        line("bodies of 100 MB, eight at once, with and without their length", "413; memory is bounded", bodies),
    ]
}

/// While something floods it.
async fn flooded<T>(world: &World, flood: impl Future<Output = Result<T>>) -> Result<T> {
    let id = world.first(|replica| replica.pid())?;
    let before = replica::resident(id)?;
    let (mut peak, mut slowest) = (before, Duration::ZERO);
    let watching = async {
        loop {
            let asked = Instant::now();
            let probe = Ask::get("{group}").by(Who::user("system:kube-aggregator", &["system:masters"]));
            let answer = timeout(ANSWERED, world.send(Way::Direct, "default", &probe)).await;
            let answer = match answer {
                Ok(answer) => answer.context("kube-apiserver would not be answered"),
                Err(_) => Err(anyhow::anyhow!("kube-apiserver would wait for more than {ANSWERED:?}")),
            };
            match answer {
                Ok(answer) if answer.code != 200 => return anyhow::anyhow!("{}", answer.brief()),
                Ok(_) => {}
                Err(error) => return error,
            }
            slowest = slowest.max(asked.elapsed());
            match replica::resident(id) {
                Ok(now) => peak = peak.max(now),
                Err(error) => return error,
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    let done = tokio::select! {
        done = flood => done,
        error = watching => Err(error),
    }?;
    println!("resident {before} KiB, at most {peak} KiB; kube-apiserver waited at most {slowest:?}");
    ensure!(!grew(before, peak), "it grew from {before} to {peak} KiB");
    Ok(done)
}

fn grew(before: u64, peak: u64) -> bool {
    peak > before + GROWTH
}

/// The control: what a server that keeps everything would look like.
#[test]
fn a_process_that_grows_is_noticed() {
    let id = std::process::id();
    let before = replica::resident(id).unwrap();
    let kept = vec![1_u8; usize::try_from(GROWTH + (64 << 10)).unwrap() << 10];
    assert!(grew(before, replica::resident(id).unwrap()));
    assert_eq!(kept[kept.len() / 2], 1);
}

/// Lets this process open as many files as it may, and refuses if those are too few for both ends of what a test here opens: the
/// server's limit is as high as ours.
fn open_files() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let needed = CONNECTIONS as u64 + 500;
    ensure!(hard >= needed, "only {hard} files may be open, {needed} are needed: raise it (ulimit -Hn)");
    Ok(())
}

fn idle(_: &Stage, _: Way) -> BoxFuture<'_, Result<()>> {
    async {
        open_files()?;
        let world = World::alone().await;
        let server = world.server(Way::Direct)?;
        let opened = flooded(&world, async {
            let mut silent = Vec::new();
            let mut shaken = Vec::new();
            let mut connecting = stream::iter((0..CONNECTIONS / 2).map(|_| async {
                (TcpStream::connect(server.address).await, server.dial(None, Protocol::Http2).await)
            }))
            .buffer_unordered(64);
            while let Some((tcp, tls)) = connecting.next().await {
                silent.extend(tcp.ok());
                shaken.extend(tls.ok());
            }
            // All are there: it is answered still, and goes on to be.
            sleep(Duration::from_secs(3)).await;
            Ok((silent.len(), shaken.len()))
        })
        .await?;
        println!("{} connections without, {} with a handshake, of {CONNECTIONS}", opened.0, opened.1);
        // Of the handshakes those may fail that the server has closed meanwhile, to make room.
        ensure!(opened.0 == CONNECTIONS / 2, "only {} connections could be opened", opened.0);
        ensure!(opened.1 * 10 > CONNECTIONS / 2 * 9, "only {} handshakes were made", opened.1);
        Ok(())
    }
    .boxed()
}

fn slow(_: &Stage, _: Way) -> BoxFuture<'_, Result<()>> {
    async {
        let world = World::alone().await;
        let server = world.server(Way::Direct)?;
        // The control: one that has asked something is kept for longer.
        let mut asking = server.connect(None, Protocol::Http2).await?;
        let probe = || Request::get(format!("https://{}/readyz", server.address)).body(whole(""));
        ensure!(asking.send(probe()?).await?.code == 200);
        let all = (0..40).map(|_| async {
            tokio::join!(unshaken(&server), silent(&server, Protocol::Http1), trickled(&server), prefaced(&server))
        });
        let closed = flooded(&world, async { Ok(join_all(all).await) }).await?;
        for (unshaken, silent, trickled, prefaced) in closed {
            unshaken.context("no handshake")?;
            silent.context("no request")?;
            trickled.context("headers by single bytes")?;
            prefaced.context("HTTP/2 without a request")?;
        }
        ensure!(asking.send(probe()?).await.context("it was closed, too")?.code == 200);
        Ok(())
    }
    .boxed()
}

/// Reads until the other side has closed.
async fn until_closed(mut stream: impl AsyncReadExt + Unpin) -> Result<()> {
    let mut sink = [0; 1024];
    let closing = async { while stream.read(&mut sink).await.is_ok_and(|read| read > 0) {} };
    timeout(CLOSED, closing).await.context("it is still open")
}

async fn unshaken(server: &Server) -> Result<()> {
    until_closed(TcpStream::connect(server.address).await?).await
}

async fn silent(server: &Server, protocol: Protocol) -> Result<()> {
    until_closed(server.dial(None, protocol).await?).await
}

/// One more byte each half second.
async fn trickled(server: &Server) -> Result<()> {
    let (reading, mut writing) = tokio::io::split(server.dial(None, Protocol::Http1).await?);
    writing.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-slow: ").await?;
    let trickle = async {
        while writing.write_all(b"a").await.is_ok() {
            writing.flush().await.ok();
            sleep(Duration::from_millis(500)).await;
        }
        // Written to no avail: the other side has gone; that it has is what the reading half says.
        futures::future::pending::<()>().await;
    };
    tokio::select! {
        closed = until_closed(reading) => closed,
        () = trickle => Ok(()),
    }
}

/// The preface and empty SETTINGS (RFC 9113, 3.4), and nothing else.
async fn prefaced(server: &Server) -> Result<()> {
    let mut stream = server.dial(None, Protocol::Http2).await?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
    until_closed(stream).await
}

fn reset(_: &Stage, _: Way) -> BoxFuture<'_, Result<()>> {
    async {
        let world = World::alone().await;
        let server = world.server(Way::Direct)?;
        let begun = flooded(&world, rapidly_reset(&server, 20_000).boxed()).await?;
        println!("{begun} streams were begun and reset before the connection was closed");
        Ok(())
    }
    .boxed()
}

/// On as many connections as it takes: each is closed by a server that has had enough of it.
async fn rapidly_reset(server: &Server, count: usize) -> Result<usize> {
    let (mut begun, mut connections) = (0, 0);
    while begun < count {
        connections += 1;
        let (client, connection) = h2::client::handshake(server.dial(None, Protocol::Http2).await?).await?;
        let driving = tokio::spawn(connection);
        let mut client = client;
        loop {
            let Ok(mut ready) = client.ready().await else { break };
            let request = Request::get(format!("https://{}/readyz", server.address)).body(())?;
            let Ok((_, mut stream)) = ready.send_request(request, true) else { break };
            stream.send_reset(h2::Reason::CANCEL);
            client = ready;
            begun += 1;
            if begun >= count {
                break;
            }
            if begun % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        driving.abort();
    }
    println!("rapid reset: {connections} connections");
    Ok(begun)
}

const CHUNK: usize = 1 << 20;
const CHUNKS: usize = 100;

fn bodies(_: &Stage, _: Way) -> BoxFuture<'_, Result<()>> {
    async {
        let world = World::alone().await;
        let space = world.space("bodies").await?;
        space.apply(paused("paused", serde_json::json!({}))).await?;
        let server = world.server(Way::Direct)?;
        let (shown, headers) = world.credentials(Way::Direct, &Who::user("root", &["system:masters"]))?;
        let path = fill("{here}/paused/quiesce", &space.name);
        let send = |with_length: bool| {
            let (server, shown, headers, path) = (&server, &shown, &headers, &path);
            async move {
                let mut request = Request::post(format!("https://{}{path}", server.address));
                for (name, value) in headers {
                    request = request.header(name, value);
                }
                if with_length {
                    request = request.header("content-length", CHUNK * CHUNKS);
                }
                server.ask(shown.as_ref(), request.body(long())?).await
            }
        };
        let answers = flooded(&world, async { Ok(join_all((0..8).map(|number| send(number % 2 == 0))).await) }).await?;
        for answer in answers {
            let answer = answer?;
            ensure!(answer.code == 413, "{}", answer.brief());
        }
        Ok(())
    }
    .boxed()
}

/// 100 MB that are made as they are taken.
fn long() -> Body {
    let chunk = Bytes::from(vec![b' '; CHUNK]);
    let frames = stream::iter((0..CHUNKS).map(move |_| Ok::<_, Infallible>(Frame::data(chunk.clone()))));
    BodyExt::boxed_unsync(StreamBody::new(frames))
}
