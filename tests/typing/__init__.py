"""The types that users see."""  # noqa: A005 - the design names the folder
