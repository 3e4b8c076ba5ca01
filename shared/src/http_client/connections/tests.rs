//! The connection pool against a server that closes, resets and answers late.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use tokio::net::{TcpListener, TcpStream};

use super::*;

const LIMITS: ResponseLimits = ResponseLimits { time: Duration::from_secs(10), body: 1_000_000 };
const WHOLE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwhole";

/// The way in which the server ends its connections.
#[derive(Clone, Copy, Debug)]
enum End {
    Close,
    Reset,
}

/// A server on a thread of its own. It goes on while the thread of a test is blocked, as a server does while a process
/// is frozen.
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    commands: mpsc::Sender<(End, mpsc::Sender<()>)>,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

impl Peer {
    /// Answers each request with these pieces, each after a pause in milliseconds.
    pub(crate) fn answering(pieces: &'static [(u64, &'static [u8])]) -> Self {
        let (commands, commanded) = mpsc::channel::<(End, mpsc::Sender<()>)>();
        let (address_sender, address) = mpsc::channel();
        let (connections, requests) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (Arc::clone(&connections), Arc::clone(&requests));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
                address_sender.send(listener.local_addr().expect("bound")).expect("the receiver is there");
                let mut serving: Vec<tokio::task::JoinHandle<()>> = Vec::new();
                let streams: Arc<Mutex<Vec<Arc<TcpStream>>>> = Arc::default();
                loop {
                    let accepted = timeout(Duration::from_millis(2), listener.accept()).await;
                    if let Ok(accepted) = accepted {
                        counts.0.fetch_add(1, Ordering::SeqCst);
                        let stream = Arc::new(accepted.expect("a connection").0);
                        streams.lock().expect("unpoisoned").push(Arc::clone(&stream));
                        serving.push(tokio::spawn(serve(stream, pieces, Arc::clone(&counts.1))));
                    }
                    match commanded.try_recv() {
                        Err(mpsc::TryRecvError::Disconnected) => return,
                        Err(mpsc::TryRecvError::Empty) => {}
                        Ok((end, done)) => {
                            serving.drain(..).for_each(|task| task.abort());
                            yield_now().await;
                            for stream in streams.lock().expect("unpoisoned").drain(..) {
                                if let End::Reset = end {
                                    stream.set_zero_linger().expect("a socket");
                                }
                            }
                            done.send(()).expect("the receiver is there");
                        }
                    }
                }
            });
        });
        Self { address: address.recv().expect("it listens"), commands, connections, requests }
    }

    /// Ends all connections. Blocks the thread of the test until that has happened.
    fn end_all(&self, end: End) {
        let (done, is_done) = mpsc::channel();
        self.commands.send((end, done)).expect("it listens");
        is_done.recv().expect("it is done");
        std::thread::sleep(Duration::from_millis(5));
    }

    fn post(&self) -> Request<Full<Bytes>> {
        Request::post(format!("http://{}/a?b=c", self.address)).body(Full::from("body")).expect("a request")
    }

    pub(crate) fn seen(&self) -> (usize, usize) {
        (self.connections.load(Ordering::SeqCst), self.requests.load(Ordering::SeqCst))
    }
}

impl Peer {
    /// Blocks the thread of the test once more than `requests` have arrived.
    pub(crate) async fn stand_still_after(self: Arc<Self>, requests: usize) {
        while self.seen().1 == requests {
            yield_now().await;
        }
        std::thread::sleep(Duration::from_millis(400));
    }
}

async fn serve(stream: Arc<TcpStream>, pieces: &'static [(u64, &'static [u8])], requests: Arc<AtomicUsize>) {
    let mut seen = Vec::new();
    loop {
        stream.readable().await.expect("a socket");
        let mut part = [0; 1024];
        match stream.try_read(&mut part) {
            Ok(0) => return,
            Ok(read) => seen.extend_from_slice(&part[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => return,
        }
        if !seen.ends_with(b"\r\n\r\nbody") && !seen.ends_with(b"\r\n\r\n{}") {
            continue;
        }
        seen.clear();
        requests.fetch_add(1, Ordering::SeqCst);
        for (pause, piece) in pieces {
            tokio::time::sleep(Duration::from_millis(*pause)).await;
            stream.writable().await.expect("a socket");
            stream.try_write(piece).expect("written");
        }
    }
}

async fn new_connection(connections: &Connections, peer: &Peer) -> NewConnection {
    connections.new_connection(peer.post().uri(), LIMITS.time).await.expect("a connection")
}

fn connections(clock: &Clock) -> Connections {
    super::super::platform(clock.clone()).expect("connections")
}

#[tokio::test]
async fn requests_follow_each_other_on_one_connection_until_it_is_idle_for_too_long() {
    let (peer, clock) = (Peer::answering(&[(0, WHOLE)]), Clock::manual(Millis(0)));
    let connections = connections(&clock);
    for _ in 0..20 {
        assert_eq!(connections.call(peer.post(), LIMITS).await.expect("an answer").body, "whole");
    }
    assert_eq!(peer.seen(), (1, 20));
    clock.advance(MAX_IDLE);
    connections.call(peer.post(), LIMITS).await.expect("an answer");
    assert_eq!(peer.seen(), (1, 21));
    clock.advance(MAX_IDLE + Duration::from_millis(1));
    connections.call(peer.post(), LIMITS).await.expect("an answer");
    assert_eq!(peer.seen(), (2, 22));
    for _ in 0..2 {
        let new = new_connection(&connections, &peer).await;
        connections.call_on_new_connection(new, peer.post(), clock.now(), LIMITS).await.expect("an answer");
    }
    assert_eq!(peer.seen(), (4, 24), "each has a connection of its own");
    let (new, passed) = (new_connection(&connections, &peer).await, clock.now() - Duration::from_millis(1));
    let late = connections.call_on_new_connection(new, peer.post(), passed, LIMITS).await;
    assert!(matches!(late, Err(SendError::TooLate)), "{late:?}");
    assert_eq!(peer.seen().1, 24);
}

/// A process is blocked, its connections end meanwhile, and then it sends a POST at once.
#[tokio::test]
async fn no_request_is_trusted_to_a_connection_that_ended_while_the_process_stood_still() {
    for end in [End::Close, End::Reset] {
        let (peer, clock) = (Peer::answering(&[(0, WHOLE)]), Clock::system());
        let connections = connections(&clock);
        for round in 1..=20 {
            connections.call(peer.post(), LIMITS).await.unwrap_or_else(|e| panic!("{end:?}, round {round}: {e}"));
            assert_eq!(peer.seen(), (round, round), "{end:?}: each request arrives once");
            peer.end_all(end);
        }
        // The same for a connection that was taken before it ended.
        for round in 21..=40 {
            let held = connections.connection(peer.post().uri()).await.expect("a connection");
            peer.end_all(end);
            let sent = connections.send(Some(held), peer.post(), Millis(i64::MAX), LIMITS).await;
            sent.unwrap_or_else(|error| panic!("{end:?}, round {round}: {error}"));
            assert_eq!(peer.seen().1, round, "{end:?}: each request arrives once");
        }
    }
}

#[tokio::test]
async fn a_connection_that_is_not_used_after_all_is_kept() {
    let (peer, connections) = (Peer::answering(&[(0, WHOLE)]), connections(&Clock::system()));
    for _ in 0..3 {
        drop(connections.connection(peer.post().uri()).await.expect("a connection"));
    }
    connections.call(peer.post(), LIMITS).await.expect("an answer");
    drop(connections.connection(peer.post().uri()).await.expect("a connection"));
    assert_eq!(peer.seen(), (1, 1));
}

#[tokio::test]
async fn nothing_leaves_after_its_time_and_the_connection_is_kept() {
    let (peer, clock) = (Peer::answering(&[(0, WHOLE)]), Clock::manual(Millis(5_000)));
    let connections = connections(&clock);
    let uri = peer.post().uri().clone();
    let held = connections.connection(&uri).await.expect("a connection");
    let late = connections.send(Some(held), peer.post(), Millis(4_999), LIMITS).await;
    assert!(matches!(late, Err(SendError::TooLate)), "{late:?}");
    let held = connections.connection(&uri).await.expect("a connection");
    connections.send(Some(held), peer.post(), Millis(5_000), LIMITS).await.expect("an answer");
    assert_eq!(peer.seen(), (1, 1));
}

/// The process is blocked for longer than its time limit, and finds the response in its socket.
#[tokio::test]
async fn an_answer_that_has_arrived_is_read_before_the_time_is_over() {
    const PIECES: [&[(u64, &[u8])]; 3] = [
        &[(20, WHOLE)],
        &[(20, b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"), (5, b"wh"), (5, b"ole")],
        &[(10, b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nwh\r\n"), (10, b"3\r\nole\r\n0\r\n\r\n")],
    ];
    for pieces in PIECES {
        let (peer, clock) = (Peer::answering(pieces), Clock::system());
        let (connections, peer) = (connections(&clock), Arc::new(peer));
        for apart in [false, true] {
            let before = peer.seen().1;
            let standing_still = tokio::spawn(peer.clone().stand_still_after(before));
            let limits = ResponseLimits { time: Duration::from_millis(200), ..LIMITS };
            let answer = if apart {
                let new = new_connection(&connections, &peer).await;
                connections.call_on_new_connection(new, peer.post(), Millis(i64::MAX), limits).await
            } else {
                connections.call(peer.post(), limits).await
            };
            assert_eq!(answer.expect("it had arrived").body, "whole", "{pieces:?}");
            standing_still.await.expect("no panic");
        }
    }
}

#[tokio::test]
async fn an_answer_that_has_not_arrived_is_a_time_out() {
    const PIECES: [&[(u64, &[u8])]; 2] =
        [&[(400, WHOLE)], &[(0, b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwh"), (400, b"ole")]];
    for pieces in PIECES {
        let (peer, clock) = (Peer::answering(pieces), Clock::system());
        let limits = ResponseLimits { time: Duration::from_millis(100), ..LIMITS };
        let failure = connections(&clock).call(peer.post(), limits).await.expect_err("it comes too late");
        assert!(matches!(failure, SendError::TimedOut), "{failure:?}");
    }
}

#[tokio::test]
async fn a_server_that_closes_every_connection_at_once_is_not_tried_for_ever() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/", listener.local_addr().expect("bound"));
    let closing = tokio::spawn(async move {
        loop {
            drop(listener.accept().await);
        }
    });
    let request = || Request::get(&url).body(Full::default()).expect("a request");
    let failure = connections(&Clock::system()).call(request(), LIMITS).await.expect_err("no answer");
    assert!(matches!(failure, SendError::NotSent(_) | SendError::Broken { status: None, .. }), "{failure:?}");
    closing.abort();
}
