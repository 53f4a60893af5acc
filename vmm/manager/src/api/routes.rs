//! What each request does.
//!
//! Every handler works on a thread for waiting: the registry's lock is held by a round for as long as that takes, which
//! delays no other client's answer. What is shown is copied out under that lock and put into words without it.

use std::collections::BTreeMap;

use allocator::{GuestId, Pages, Shares, Tax};
use axum::body::{Bytes, HttpBody};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::de::DeserializeOwned;

use super::failure::ApiError;
use super::types::{
    BalloonStatistics, GroupChange, GroupView, GuestChange, GuestList, GuestView, HostChange, HostView,
    Phase, StopOrder,
};
use super::workers::Workers;
use super::{BODY_LIMIT, asker, view};
use crate::budget::Budget;
use crate::host::Host;
use crate::kept::KeptSettings;
use crate::manager::{Change, Event, Manager};
use crate::picture::Picture;
use crate::policy::{self, Settings};
use crate::registry::Registry;
use levy_protocol::link::{FromManager, WITH_GRACE};

type Answer<T> = Result<Json<T>, ApiError>;
type Directed = Result<(StatusCode, Json<GuestView>), ApiError>;
type Body = Result<Bytes, BytesRejection>;

/// One manager, and the threads on which requests wait for it.
#[derive(Debug, Clone)]
pub(super) struct Served {
    host: Host,
    looking: Workers,
    changing: Workers,
}

/// The name in a path; what is wrong with it is said as everything else is.
struct Name(String);

impl FromRequestParts<Served> for Name {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, served: &Served) -> Result<Self, ApiError> {
        let Path(name) = Path::from_request_parts(parts, served).await?;
        Ok(Self(name))
    }
}

impl Served {
    pub(super) fn new(host: Host, looking: Workers, changing: Workers) -> Self {
        Self {
            host,
            looking,
            changing,
        }
    }

    /// Does `work` with the manager where waiting harms no other client.
    pub(super) async fn aside<T: Send + 'static>(
        self,
        work: impl FnOnce(&Host) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<Json<T>, ApiError> {
        let host = self.host;
        self.looking.run(move || work(&host)).await?.map(Json)
    }

    /// The same where `work` waits for the disk, which only other changes wait for.
    async fn changing<T: Send + 'static>(
        self,
        work: impl FnOnce(&Host) -> Result<T, ApiError> + Send + 'static,
    ) -> Answer<T> {
        let host = self.host;
        self.changing.run(move || work(&host)).await?.map(Json)
    }
}

/// All routes, over one manager.
pub(super) fn router(served: Served) -> Router {
    Router::new()
        .route("/host", get(show_host).put(change_host))
        .route("/guests", get(list))
        .route("/guests/{name}", get(show).patch(change))
        .route("/guests/{name}/balloon/statistics", get(statistics))
        .route("/guests/{name}/stop", post(stop))
        .route("/guests/{name}/pause", post(pause))
        .route("/guests/{name}/resume", post(resume))
        .route("/groups", get(list_groups))
        .route("/groups/{name}", get(show_group).patch(change_group))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(from_fn(bounded))
        .layer(from_fn_with_state(served.clone(), asker::admit))
        .with_state(served)
}

/// Refuses a body by the length that its head names, before any of it has come.
async fn bounded(request: Request, next: Next) -> Response {
    match request.body().size_hint().lower() {
        bytes if bytes > BODY_LIMIT as u64 => ApiError::Long { bytes }.into_response(),
        _ => next.run(request).await,
    }
}

async fn no_route(method: Method, uri: Uri) -> ApiError {
    ApiError::NoRoute {
        method: method.to_string(),
        path: uri.path().to_owned(),
    }
}

async fn no_method(method: Method, uri: Uri) -> ApiError {
    ApiError::NoMethod {
        method: method.to_string(),
        path: uri.path().to_owned(),
    }
}

async fn show_host(State(served): State<Served>) -> Answer<HostView> {
    served
        .aside(move |host| Ok(view::host(host, &host.picture())))
        .await
}

async fn change_host(State(served): State<Served>, body: Body) -> Answer<HostView> {
    let change: HostChange = read(body)?;
    served
        .changing(move |host| {
            let kept = KeptSettings {
                budget_bytes: change.budget_bytes,
                tax_percent: change.tax_percent,
                rebalance_seconds: change.rebalance_seconds,
            };
            host.change_settings(kept, |manager| {
                let settings = changed(*manager.registry().policy().settings(), change)?;
                apply(manager, Change::Settings(settings))
            })?;
            Ok(view::host(host, &host.picture()))
        })
        .await
}

async fn list(State(served): State<Served>) -> Answer<GuestList> {
    served
        .aside(move |host| {
            Ok(GuestList {
                guests: view::guests(&host.picture(), None),
            })
        })
        .await
}

async fn show(State(served): State<Served>, Name(name): Name) -> Answer<GuestView> {
    served.aside(move |host| one(&host.picture(), &name)).await
}

async fn change(State(served): State<Served>, Name(name): Name, body: Body) -> Answer<GuestView> {
    let change: GuestChange = read(body)?;
    let shares = change.shares.map(shares).transpose()?;
    served
        .changing(move |host| {
            let mut state = host.state();
            let registry = state.manager.registry();
            let id = find(registry, &name)?;
            let mut limits = registry
                .member(id)
                .map(|member| member.limits)
                .ok_or_else(|| ApiError::NoGuest(name.clone()))?;
            if let Some(min) = change.min_bytes {
                limits.min = pages(min);
            }
            limits.shares = shares.unwrap_or(limits.shares);
            apply(&mut state.manager, Change::Limits(id, limits))?;
            drop(state);
            host.keep();
            host.tell_limits([id]);
            Ok(GuestView {
                unkept: host.unkept(),
                ..one(&host.picture(), &name)?
            })
        })
        .await
}

async fn list_groups(State(served): State<Served>) -> Answer<BTreeMap<String, GroupView>> {
    served.aside(move |host| Ok(view::groups(&host.picture()))).await
}

async fn show_group(State(served): State<Served>, Name(name): Name) -> Answer<GroupView> {
    served.aside(move |host| one_group(&host.picture(), &name)).await
}

async fn change_group(State(served): State<Served>, Name(name): Name, body: Body) -> Answer<GroupView> {
    let change: GroupChange = read(body)?;
    let shares = change.shares.map(shares).transpose()?;
    served
        .changing(move |host| {
            let mut state = host.state();
            let registry = state.manager.registry();
            let id = registry.groups().find(&name);
            let id = id.ok_or_else(|| ApiError::NoGroup(name.clone()))?;
            let mut group = registry.groups().list()[id.get() as usize];
            group.min = change.min_bytes.map_or(group.min, pages);
            group.max = change.max_bytes.map_or(group.max, pages);
            group.shares = shares.unwrap_or(group.shares);
            apply(&mut state.manager, Change::Group(id, group))?;
            let guests = state.manager.registry().guests();
            let members = guests.filter(|(member, _)| member.limits.group == Some(id));
            let members: Vec<GuestId> = members.map(|(member, _)| member.id).collect();
            drop(state);
            host.keep();
            host.tell_limits(members);
            Ok(GroupView {
                unkept: host.unkept(),
                ..one_group(&host.picture(), &name)?
            })
        })
        .await
}

async fn statistics(State(served): State<Served>, Name(name): Name) -> Answer<BalloonStatistics> {
    served
        .aside(move |host| {
            let registry = host.registry();
            let id = find(&registry, &name)?;
            registry
                .member(id)
                .and_then(|member| member.report.balloon.as_ref())
                .map(view::statistics)
                .ok_or(ApiError::NoBalloon(name))
        })
        .await
}

async fn stop(State(served): State<Served>, Name(name): Name, body: Body) -> Directed {
    let StopOrder { grace_ms, force } = match &body {
        Ok(body) if body.is_empty() => StopOrder::default(),
        _ => read(body)?,
    };
    if force {
        return kill(served, name).await;
    }
    if grace_ms.is_some() && !knows_grace(served.clone(), name.clone()).await? {
        return Err(ApiError::Value {
            key: "grace_ms",
            what:
                "this guest's process is of an older version, which has its own; leave it out, or use force"
                    .into(),
        });
    }
    direct(served, name, (FromManager::Stop { grace_ms }, Phase::Stopping)).await
}

/// Whether a guest's process can be told how long its guest may take to stop.
async fn knows_grace(served: Served, name: String) -> Result<bool, ApiError> {
    let knows = served.aside(move |host| {
        let registry = host.registry();
        let id = find(&registry, &name)?;
        let mut guests = registry.guests();
        let process = guests.find(|(member, _)| member.id == id);
        Ok(process.is_some_and(|(_, process)| process.protocol >= WITH_GRACE))
    });
    Ok(knows.await?.0)
}

/// Ends a guest's process at once. Nothing is asked of it: its guest may have taken it over.
async fn kill(served: Served, name: String) -> Directed {
    let killed = served.aside(move |host| {
        let id = find(&host.registry(), &name)?;
        host.kill(id)
            .map_err(|error| ApiError::Unkilled(name.clone(), error))?;
        host.handle(Event::Directed(id, Phase::Stopping));
        one(&host.picture(), &name)
    });
    Ok((StatusCode::ACCEPTED, killed.await?))
}

async fn pause(State(served): State<Served>, Name(name): Name) -> Directed {
    direct(served, name, (FromManager::Pause, Phase::Paused)).await
}

async fn resume(State(served): State<Served>, Name(name): Name) -> Directed {
    direct(served, name, (FromManager::Resume, Phase::Running)).await
}

/// Tells a guest's process to bring it into a phase.
async fn direct(served: Served, name: String, (message, phase): (FromManager, Phase)) -> Directed {
    let told = served.aside(move |host| {
        let id = find(&host.registry(), &name)?;
        // Not under the registry's lock: a client that does not read is waited for.
        if !host.tell(id, &message) {
            return Err(ApiError::Away(name));
        }
        host.handle(Event::Directed(id, phase));
        one(&host.picture(), &name)
    });
    Ok((StatusCode::ACCEPTED, told.await?))
}

fn apply(manager: &mut Manager, change: Change) -> Result<(), ApiError> {
    let changed = manager.change(change);
    changed.map_err(|error| ApiError::Refused(manager.registry().named(&error.to_string())))
}

fn one_group(picture: &Picture, name: &str) -> Result<GroupView, ApiError> {
    view::groups(picture)
        .remove(name)
        .ok_or_else(|| ApiError::NoGroup(name.to_owned()))
}

fn one(picture: &Picture, name: &str) -> Result<GuestView, ApiError> {
    view::guests(picture, Some(name))
        .pop()
        .ok_or_else(|| ApiError::NoGuest(name.to_owned()))
}

fn find(registry: &Registry, name: &str) -> Result<GuestId, ApiError> {
    registry
        .find(name)
        .ok_or_else(|| ApiError::NoGuest(name.to_owned()))
}

fn changed(before: Settings, change: HostChange) -> Result<Settings, ApiError> {
    let mut settings = before;
    if let Some(budget) = change.budget_bytes {
        let asked = Budget::explicit(budget).map_err(|error| ApiError::Value {
            key: "budget_bytes",
            what: error.to_string(),
        })?;
        if let Some(warning) = asked.warning() {
            log::warn!("{warning}");
        }
        settings.budget = pages(budget);
    }
    if let Some(percent) = change.tax_percent {
        settings.tax = Tax::new(percent / 100.0).map_err(|_| ApiError::Value {
            key: "tax_percent",
            what: format!("{percent:?} is not a tax; it goes from 0 to below 100"),
        })?;
    }
    if let Some(seconds) = change.rebalance_seconds {
        settings.rebalance = policy::rebalance(seconds).map_err(|what| ApiError::Value {
            key: "rebalance_seconds",
            what,
        })?;
    }
    Ok(settings)
}

fn shares(count: u32) -> Result<Shares, ApiError> {
    match count {
        0 => Err(ApiError::Value {
            key: "shares",
            what: "it goes from 1 to 4294967295 (low is 500, normal 1000, high 2000)".into(),
        }),
        _ => Ok(Shares::new(count)),
    }
}

/// Whole pages, rounded up, within what the allocator counts with.
fn pages(bytes: u64) -> Pages {
    Pages::new(bytes.div_ceil(4096)).min(Pages::LIMIT)
}

fn read<T: DeserializeOwned>(body: Body) -> Result<T, ApiError> {
    let body = body?;
    // A list would be read as the fields in their order.
    match body.trim_ascii_start().first() {
        Some(b'{') => Ok(serde_json::from_slice(&body)?),
        _ => Err(ApiError::NotAnObject),
    }
}
