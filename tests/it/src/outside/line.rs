//! The connection between the functions and the store.

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A connection to a server that a test can cut and mend. While it is cut, connections are closed without an answer.
#[derive(Debug)]
pub struct Line {
    address: std::net::SocketAddr,
    cut: watch::Sender<bool>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Line {
    pub(super) async fn to(url: &str) -> Self {
        let server = url.strip_prefix("http://").expect("http").trim_end_matches('/').to_owned();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (cut, is_cut) = watch::channel(false);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(carry(stream, server.clone(), is_cut.clone()));
            }
        });
        Self { address, cut, serving }
    }

    /// Base URL of this end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Cuts the line: closes all connections, and closes each new connection at once.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Mends the line: new connections reach the server again.
    pub fn mend(&self) {
        self.cut.send_replace(false);
    }
}

async fn carry(mut near: TcpStream, server: String, mut is_cut: watch::Receiver<bool>) {
    if *is_cut.borrow_and_update() {
        return;
    }
    let Ok(mut far) = TcpStream::connect(server).await else { return };
    let _without = (near.set_nodelay(true), far.set_nodelay(true));
    tokio::select! {
        _ended = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
        _cut = is_cut.wait_for(|cut| *cut) => {}
    }
}
