"""Pure decisions about placement and load: values in, values out."""
