//! An S3-compatible server for tests: `s3_server ADDRESS DIRECTORY`, with objects below the directory, a folder for each bucket. Ends when it
//! is killed.

use std::{env, path::Path};

use anyhow::{Context, anyhow};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use tokio::net::TcpListener;
use treering_tests::s3::{ACCESS_KEY, SECRET_KEY};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().collect();
    let [_, address, directory] = arguments.as_slice() else {
        return Err(anyhow!("s3_server ADDRESS DIRECTORY"));
    };
    let objects = s3s_fs::FileSystem::new(Path::new(directory));
    let objects = objects.map_err(|error| anyhow!("{directory}: {error:?}"))?;
    let mut service = S3ServiceBuilder::new(objects);
    service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
    let service = service.build();
    let listener = TcpListener::bind(address).await.with_context(|| address.clone())?;
    loop {
        let (socket, _) = listener.accept().await?;
        let service = service.clone();
        tokio::spawn(async move {
            let http = Builder::new(TokioExecutor::new());
            // A client that goes away is no news.
            let _ = http.serve_connection(TokioIo::new(socket), service).await;
        });
    }
}
