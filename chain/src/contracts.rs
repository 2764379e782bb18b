//! The suite's contracts as Rust types, made of the files in `contracts/out`: a module per contract
//! with its calls, events, errors and bytecode.

alloy_sol_types::sol!(
    #[derive(Debug, PartialEq, Eq)]
    GridToken,
    "../contracts/out/GridToken.json"
);
alloy_sol_types::sol!(
    #[derive(Debug, PartialEq, Eq)]
    Directory,
    "../contracts/out/Directory.json"
);
alloy_sol_types::sol!(
    #[derive(Debug, PartialEq, Eq)]
    Registry,
    "../contracts/out/Registry.json"
);
alloy_sol_types::sol!(
    #[derive(Debug, PartialEq, Eq)]
    PrevrandaoBeacon,
    "../contracts/out/PrevrandaoBeacon.json"
);
alloy_sol_types::sol!(
    #[derive(Debug, PartialEq, Eq)]
    DrandBeacon,
    "../contracts/out/DrandBeacon.json"
);
alloy_sol_types::sol!(
    #[derive(Debug, PartialEq, Eq)]
    Capacity,
    "../contracts/out/Capacity.json"
);
alloy_sol_types::sol!(
    #[derive(Debug, PartialEq, Eq)]
    Disputes,
    "../contracts/out/Disputes.json"
);
alloy_sol_types::sol!(
    #[derive(Debug, PartialEq, Eq)]
    HashSegment,
    "../contracts/out/HashSegment.json"
);
alloy_sol_types::sol!(
    #[derive(Debug, PartialEq, Eq)]
    MerkleLeaf,
    "../contracts/out/MerkleLeaf.json"
);
alloy_sol_types::sol!(
    #[derive(Debug, PartialEq, Eq)]
    DagLabel,
    "../contracts/out/DagLabel.json"
);
alloy_sol_types::sol!(
    #[derive(Debug, PartialEq, Eq)]
    Reservations,
    "../contracts/out/Reservations.json"
);
alloy_sol_types::sol!(
    #[derive(Debug, PartialEq, Eq)]
    Rewards,
    "../contracts/out/Rewards.json"
);
alloy_sol_types::sol!(
    #[derive(Debug, PartialEq, Eq)]
    Names,
    "../contracts/out/Names.json"
);

/// What a contract meant by refusing, in its own words: the name of its error and the values.
#[must_use]
pub fn explain(output: &[u8]) -> String {
    if output.is_empty() {
        return "without a word".to_owned();
    }
    macro_rules! known {
        ($($contract:ident :: $errors:ident),+ $(,)?) => {
            $(if let Ok(error) = <$contract::$errors as alloy_sol_types::SolInterface>::abi_decode(output) {
                return format!("{error:?}");
            })+
        };
    }
    known!(
        GridToken::GridTokenErrors,
        Directory::DirectoryErrors,
        Registry::RegistryErrors,
        Capacity::CapacityErrors,
        Disputes::DisputesErrors,
        Reservations::ReservationsErrors,
        Rewards::RewardsErrors,
        Names::NamesErrors,
        PrevrandaoBeacon::PrevrandaoBeaconErrors,
        DrandBeacon::DrandBeaconErrors,
    );
    match <alloy_sol_types::GenericContractError as alloy_sol_types::SolInterface>::abi_decode(
        output,
    ) {
        Ok(reason) => reason.to_string(),
        // Whatever else it is, it is not shown as text: a contract may return anything.
        Err(_) => {
            format!("0x{}", alloy_primitives::hex::encode(output.get(..64).unwrap_or(output)))
        }
    }
}
