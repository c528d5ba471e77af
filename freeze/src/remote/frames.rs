//! Frames: four bytes of length, big-endian, and that much JSON. Nothing is kept between two of them: a freezer has links to
//! thousands of agents, and hears seldom of most.

use std::{io, time::Duration};

use futures::{Stream, stream};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::timeout,
};
use tracing::debug;

/// Longer ones end the link: a label and a map of tablespaces are some kilobytes.
pub const LONGEST_FRAME: usize = 1024 * 1024;
/// So much is believed before it has come.
const AT_ONCE: usize = 16 * 1024;
/// How often an agent says that it is there, which it is told back.
pub(super) const HERE: Duration = Duration::from_secs(15);
/// Whoever says nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(40);
/// How long the other side may take to take a frame.
const STUCK: Duration = Duration::from_secs(10);

/// The next frame; `None`: the other side has ended between two. Not safe to cancel: the link is then of no more use.
pub async fn read<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length[..1]).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    from.read_exact(&mut length[1..]).await?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > LONGEST_FRAME {
        return Err(invalid(format!("a frame of {length} bytes, and {LONGEST_FRAME} are the most")));
    }
    let mut text = Vec::with_capacity(length.min(AT_ONCE));
    let read = from.take(length as u64).read_to_end(&mut text).await?;
    if read < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&text).map(Some).map_err(|error| invalid(format!("a frame that cannot be read: {error}")))
}

/// One frame, and everything before it, is on its way when this returns. Not safe to cancel.
pub async fn write<T: Serialize>(to: &mut (impl AsyncWrite + Unpin), frame: &T) -> io::Result<()> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, frame).map_err(io::Error::other)?;
    let length = bytes.len() - 4;
    if length > LONGEST_FRAME {
        return Err(invalid(format!("a frame of {length} bytes, and {LONGEST_FRAME} are the most")));
    }
    let length = u32::try_from(length).map_err(io::Error::other)?;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    to.write_all(&bytes).await?;
    to.flush().await
}

/// What is read, until the other side ends, is silent for too long, or says what nobody understands.
pub(super) fn received<T: DeserializeOwned>(from: impl AsyncRead + Unpin) -> impl Stream<Item = T> {
    stream::unfold(from, |mut from| async {
        let next = timeout(SILENCE, read(&mut from)).await.unwrap_or_else(|late| Err(late.into()));
        match next {
            Ok(frame) => frame.map(|frame| (frame, from)),
            Err(error) => {
                debug!(%error, "a link has ended");
                None
            }
        }
    })
}

/// Writes what comes, until nothing can come any more.
pub(super) async fn sent<T: Serialize>(mut to: impl AsyncWrite + Unpin, mut frames: mpsc::Receiver<T>) {
    while let Some(frame) = frames.recv().await {
        let written = timeout(STUCK, write(&mut to, &frame)).await.unwrap_or_else(|late| Err(late.into()));
        if let Err(error) = written {
            debug!(%error, "a link has ended");
            return;
        }
    }
    to.shutdown().await.ok();
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::remote::wire::{Down, Up};

    #[tokio::test]
    async fn frames_come_one_by_one_and_an_end_within_one_is_an_error() {
        let mut bytes = Vec::new();
        for hold in [1, 2] {
            write(&mut bytes, &Down::Forget { hold }).await.unwrap();
        }
        let mut rest = bytes.as_slice();
        for wanted in [1, 2] {
            assert!(matches!(read(&mut rest).await.unwrap(), Some(Down::Forget { hold }) if hold == wanted));
        }
        assert!(read::<Down>(&mut rest).await.unwrap().is_none());
        for cut in 1..bytes.len() / 2 {
            assert!(read::<Down>(&mut &bytes[..cut]).await.is_err(), "{cut}");
        }
    }

    #[tokio::test]
    async fn what_is_too_long_is_not_waited_for() {
        let bytes = u32::MAX.to_be_bytes();
        let mut long = bytes.as_slice();
        let error = read::<Up>(&mut long).await.unwrap_err();
        assert!(error.to_string().contains("the most"), "{error}");
        let long = "x".repeat(LONGEST_FRAME);
        assert!(write(&mut Vec::new(), &long).await.is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(bytes: Vec<u8>) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async { read::<Up>(&mut bytes.as_slice()).await.ok() });
        }
    }
}
