//! Exit codes: 0 ok, 1 error, 2 usage, 3 not found, 4 conflict, 5 refused, 6 timeout.

use std::process::ExitCode;

use treering_control::error::ApiError;

/// Prints the error, if there is one, as one sentence on stderr and chooses the exit code.
pub fn code_of(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let Some(api) = error.downcast_ref::<ApiError>() else {
        eprintln!("treering: {error:#}");
        return ExitCode::from(1);
    };
    eprintln!("treering: {}", api.message);
    if let Some(hint) = &api.hint {
        eprintln!("  {hint}");
    }
    ExitCode::from(match api.code.as_str() {
        "invalid" => 2,
        "not_found" => 3,
        "conflict" => 4,
        "refused" => 5,
        "timeout" | "not_yet" => 6,
        _ => 1,
    })
}
