//! The network and the TLS termination in front of the platform, and the faults that they can have.
//!
//! A loopback server without TLS accepts a connection at once and answers in one piece. Such a server hides every fault
//! that needs time between connecting, sending and reading. This front takes TLS connections, passes their bytes on to
//! the fake platform, and can delay handshakes, hold back or cut up answers, and close or reset connections.
//!
//! A delayed handshake stands for every slow way to a connection, including a lost SYN and slow DNS: the client only
//! sees that connecting takes long.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// The way in which the front ends its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// In order (FIN), as a server ends an idle connection.
    Close,
    /// With a reset (RST), as a server or a load balancer ends a connection that it has forgotten.
    Reset,
}

/// The way in which answers are passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// Unchanged, as they come.
    Whole,
    /// In pieces of so many bytes, each after a pause.
    InPieces(usize, Duration),
}

#[derive(Debug)]
struct Way {
    acceptor: TlsAcceptorOf,
    platform: watch::Sender<Option<String>>,
    handshake: Mutex<Duration>,
    answers: Mutex<Answers>,
    held: watch::Sender<bool>,
    /// The number of times that all connections were ended, and the way in which they were ended last.
    ended: watch::Sender<(u64, End)>,
    open: AtomicUsize,
}

/// The TLS acceptor implements no useful `Debug`, so the text leaves it out.
struct TlsAcceptorOf(TlsAcceptor);

impl std::fmt::Debug for TlsAcceptorOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsAcceptor")
    }
}

/// The front. Dropping it ends its connections.
#[derive(Debug)]
pub struct Front {
    address: SocketAddr,
    way: Arc<Way>,
    root: RootFile,
    client: ClientConfig,
    accepting: JoinHandle<()>,
}

/// The root certificate in a file of its own, for a process that reads `SSL_CERT_FILE`.
#[derive(Debug)]
struct RootFile(PathBuf);

impl Drop for RootFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Front {
    /// Listens on a free port. Connections wait until [`Front::lead_to`] says where the platform is.
    ///
    /// # Panics
    /// If the front cannot listen.
    pub async fn start() -> Self {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let server = server.expect("a provider").with_no_client_auth();
        let server = server.with_single_cert(vec![cert.der().clone()], key).expect("a certificate and its key");
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).expect("a root");
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let client = client.expect("a provider").with_root_certificates(roots).with_no_client_auth();
        let root = std::env::temp_dir().join(format!("hoopai-relay-root-{}.pem", shared::domain::random::hex::<8>()));
        std::fs::write(&root, cert.pem()).expect("a file");
        let way = Arc::new(Way {
            acceptor: TlsAcceptorOf(TlsAcceptor::from(Arc::new(server))),
            platform: watch::Sender::new(None),
            handshake: Mutex::new(Duration::ZERO),
            answers: Mutex::new(Answers::Whole),
            held: watch::Sender::new(false),
            ended: watch::Sender::new((0, End::Close)),
            open: AtomicUsize::new(0),
        });
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let accepting = tokio::spawn(accept(listener, Arc::clone(&way)));
        Self { address, way, root: RootFile(root), client, accepting }
    }

    /// Base URL.
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    /// File with the root certificate that signs the certificate of this front.
    pub fn root_file(&self) -> &Path {
        &self.root.0
    }

    /// Configuration of a client that trusts only this front.
    pub fn client(&self) -> ClientConfig {
        self.client.clone()
    }

    /// Tells the front the base URL of the platform, which is without TLS.
    ///
    /// # Panics
    /// If `url` is not such a URL.
    pub fn lead_to(&self, platform: &str) {
        let address = platform.strip_prefix("http://").expect("http").trim_end_matches('/').to_owned();
        self.way.platform.send_replace(Some(address));
    }

    /// Delays the TLS handshake of every connection that is accepted from now on.
    pub fn handshakes_take(&self, time: Duration) {
        *lock(&self.way.handshake) = time;
    }

    /// Passes answers on in another way from now on.
    pub fn answers(&self, how: Answers) {
        *lock(&self.way.answers) = how;
    }

    /// Holds back every answer until [`Front::release`].
    pub fn hold(&self) {
        self.way.held.send_replace(true);
    }

    /// Passes answers on again.
    pub fn release(&self) {
        self.way.held.send_replace(false);
    }

    /// Ends all connections. The front goes on accepting new ones.
    pub fn end_all(&self, how: End) {
        self.way.ended.send_modify(|ended| *ended = (ended.0 + 1, how));
    }

    /// Number of connections that are open.
    pub fn open(&self) -> usize {
        self.way.open.load(Ordering::SeqCst)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, way: Arc<Way>) {
    // Aborting this task drops the set, and with it every connection.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                let way = Arc::clone(&way);
                way.open.fetch_add(1, Ordering::SeqCst);
                connections.spawn(async move {
                    carry(stream, &way).await;
                    way.open.fetch_sub(1, Ordering::SeqCst);
                });
            },
            Some(_ended) = connections.join_next() => {}
        }
    }
}

async fn carry(near: TcpStream, way: &Way) {
    let mut ended = way.ended.subscribe();
    let delay = *lock(&way.handshake);
    tokio::time::sleep(delay).await;
    let _slower_then = near.set_nodelay(true);
    let Ok(mut near) = way.acceptor.0.accept(near).await else { return };
    let mut platform = way.platform.subscribe();
    let Ok(address) = platform.wait_for(Option::is_some).await.map(|address| address.clone().unwrap_or_default())
    else {
        return;
    };
    let Ok(mut far) = TcpStream::connect(address).await else { return };
    let _slower_then = far.set_nodelay(true);
    let how = tokio::select! {
        () = pass_on(&mut near, &mut far, way) => return,
        _changed = ended.changed() => ended.borrow().1,
    };
    if how == End::Reset {
        let _closed_then = near.get_ref().0.set_zero_linger();
    }
}

/// Passes bytes on in both directions until one side ends.
async fn pass_on(near: &mut TlsStream<TcpStream>, far: &mut TcpStream, way: &Way) {
    let (mut from_client, mut to_client) = tokio::io::split(near);
    let (mut from_platform, mut to_platform) = far.split();
    let requests = async {
        let _ended = tokio::io::copy(&mut from_client, &mut to_platform).await;
        let _ended = to_platform.shutdown().await;
    };
    let answers = async {
        let mut held = way.held.subscribe();
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from_platform.read(&mut bytes).await {
            // If the front is gone, nothing is held back.
            drop(held.wait_for(|held| !held).await);
            let (size, pause) = match *lock(&way.answers) {
                Answers::Whole => (read, Duration::ZERO),
                Answers::InPieces(size, pause) => (size, pause),
            };
            for piece in bytes[..read].chunks(size.max(1)) {
                tokio::time::sleep(pause).await;
                if to_client.write_all(piece).await.is_err() || to_client.flush().await.is_err() {
                    return;
                }
            }
        }
        let _ended = to_client.shutdown().await;
    };
    tokio::select! {
        () = answers => {}
        () = async { requests.await; std::future::pending().await } => {}
    }
}
