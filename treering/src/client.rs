//! The REST API as the command line uses it.

use anyhow::Context;
use reqwest::{Method, blocking};
use serde::{Serialize, de::DeserializeOwned};
use treering_control::error::ApiError;

/// A connection to control.
pub struct Client {
    http: blocking::Client,
    base: String,
}

impl Client {
    pub fn new(base: &str) -> anyhow::Result<Client> {
        let http = blocking::Client::builder().timeout(None).build()?;
        Ok(Client { http, base: base.trim_end_matches('/').to_owned() })
    }

    /// One request below `/v1/projects/default`. Failures the service names come back as [`ApiError`].
    pub fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> anyhow::Result<T> {
        let url = format!("{}/v1/projects/default{path}", self.base);
        let mut request = self.http.request(method, &url);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response =
            request.send().with_context(|| format!("reach Treering at {}", self.base))?;
        if response.status().is_success() {
            return Ok(response.json()?);
        }
        let status = response.status();
        let text = response.text()?;
        let named: ApiError = serde_json::from_str(&text)
            .unwrap_or_else(|_| ApiError::new("internal", format!("{url}: {status} {text}")));
        Err(named.into())
    }

    pub fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.call(Method::GET, path, None::<&()>)
    }

    pub fn post<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.call(Method::POST, path, None::<&()>)
    }
}
