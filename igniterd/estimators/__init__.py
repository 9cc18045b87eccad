"""Estimators: arrival rate, bias of the model, daily pattern, live curve. Pure."""
