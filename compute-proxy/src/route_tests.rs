use super::*;

fn message<'a>(parameters: &[(&'a str, &'a str)]) -> StartupMessage {
    StartupMessage::new(parameters.iter().copied())
}

/// The branch, and what the compute is sent.
fn routed(parameters: &[(&str, &str)]) -> Result<(String, StartupMessage), RouteError> {
    let routed = route(message(parameters), "main")?;
    Ok((routed.branch.to_string(), routed.startup))
}

fn goes(parameters: &[(&str, &str)], branch: &str, sent: &[(&str, &str)]) {
    assert_eq!(routed(parameters), Ok((branch.to_owned(), message(sent))), "{parameters:?}");
}

#[test]
fn every_way_to_name_a_branch() {
    goes(&[("user", "u")], "main", &[("user", "u")]);
    goes(&[("user", "u@dev")], "dev", &[("user", "u")]);
    goes(&[("user", "u"), ("database", "d@dev")], "dev", &[("user", "u"), ("database", "d")]);
    goes(&[("user", "u"), ("options", "branch=dev")], "dev", &[("user", "u")]);
    goes(&[("user", "u"), ("options", "-c treering.branch=dev")], "dev", &[("user", "u")]);
    goes(&[("user", "u"), ("options", "--treering.branch=dev")], "dev", &[("user", "u")]);
    goes(
        &[("user", "u"), ("options", r"-c a=b\ c -c treering.branch=dev -c x=y")],
        "dev",
        &[("user", "u"), ("options", r"-c a=b\ c -c x=y")],
    );
}

#[test]
fn what_names_no_branch_is_not_touched() {
    let odd = [("user", "u"), ("options", "  -c a=b   -c c=d "), ("application_name", "x@y")];
    goes(&odd, "main", &odd);
}

#[test]
fn the_same_name_twice_is_one_name() {
    // psql with no database given sends the user's name as the database.
    let twice = [("user", "u@dev"), ("database", "u@dev"), ("options", "branch=dev")];
    goes(&twice, "dev", &[("user", "u"), ("database", "u")]);
}

#[test]
fn two_names_are_refused() {
    let error = routed(&[("user", "u@dev"), ("database", "d@prod")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the connection names two branches: \"dev\" by user suffix and \"prod\" by database suffix"
    );
    assert_eq!(error.report().sqlstate(), "3D000");
    assert!(routed(&[("user", "u@dev"), ("options", "branch=prod")]).is_err());
    assert!(routed(&[("user", "u"), ("options", "branch=a -c treering.branch=b")]).is_err());
}

#[test]
fn names_with_an_at_have_a_way_in() {
    goes(&[("user", "u@example.com@")], "main", &[("user", "u@example.com")]);
    goes(&[("user", "u@example.com@dev")], "dev", &[("user", "u@example.com")]);
    let error = routed(&[("user", "u@example.com")]).unwrap_err();
    assert!(error.report().get(b'H').is_some_and(|hint| hint.contains("add another")));
    assert!(routed(&[("user", "u"), ("options", "branch=")]).is_err());
}

#[test]
fn replication_is_refused_however_it_is_spelt() {
    for value in ["true", "1", "on", "database", "DATABASE", "yes", "t", "nonsense"] {
        let error = routed(&[("user", "u"), ("replication", value)]).unwrap_err();
        assert_eq!((error.report().sqlstate(), error.kind()), ("0A000", ErrorKind::Invalid));
    }
    goes(&[("user", "u"), ("replication", "false")], "main", &[("user", "u")]);
    // Postgres reads all repetitions; none is left to it.
    goes(
        &[("replication", "database"), ("user", "u"), ("replication", "off")],
        "main",
        &[("user", "u")],
    );
}

/// The relay's own operating-system user is the agent: `peer` must never be lent to a client.
#[test]
fn the_agent_s_role_is_nobody_s_to_use() {
    for user in ["treering_agent", "treering_agent@dev", "treering_agent@"] {
        assert_eq!(routed(&[("user", user)]), Err(RouteError::ReservedRole), "{user}");
    }
    let twice = [("user", "treering_agent"), ("user", "u")];
    goes(&twice, "main", &[("user", "u")]);
    assert_eq!(routed(&[("user", "u"), ("user", "treering_agent")]), Err(RouteError::ReservedRole));
}
